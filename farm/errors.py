"""Every error the farm raises on purpose, each with a code, a retry rule and an HTTP status.

This module knows nothing else of the farm. A message gives the value, the limit and the remedy, and never a prompt.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from farm.results import JobView


class FarmError(Exception):
    """Base of all errors of the farm."""

    code: ClassVar[str] = "farm_error"
    retryable: ClassVar[bool] = False
    http_status: ClassVar[int] = 500


class InvalidRequest(FarmError):
    """A caller's input breaks a rule; ``field`` names the input."""

    code = "invalid_request"
    http_status = 400

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem

    def __reduce__(self) -> tuple[type[InvalidRequest], tuple[str, str]]:
        return type(self), (self.field, self.problem)


class PromptTooLong(InvalidRequest):
    """Prompt and max_tokens together exceed the model's context."""

    code = "prompt_too_long"

    @classmethod
    def of(cls, prompt_tokens: int, max_tokens: int, context: int) -> PromptTooLong:
        """Build the error from counts of tokens."""
        return cls(
            "prompt",
            f"{prompt_tokens:,} prompt tokens + {max_tokens:,} max_tokens > {context:,}, the model's context; "
            "shorten the prompt or lower max_tokens",
        )


class IdempotencyConflict(FarmError):
    """An idempotency key or job id was used before with another request."""

    code = "idempotency_conflict"
    http_status = 422


class SettingsError(FarmError):
    """A setting is misspelt, out of range or contradicts another one."""

    code = "settings"


class ServerUnreachable(FarmError):
    """The Redis server does not answer in time."""

    code = "server_unreachable"
    retryable = True
    http_status = 503


class ServerFull(FarmError):
    """The Redis server has no memory left for another job."""

    code = "server_full"
    retryable = True
    http_status = 503


class QueueFull(FarmError):
    """The whole farm holds as many queued jobs as it may; ``retry_after_s`` is when some may have gone."""

    code = "queue_full"
    retryable = True
    http_status = 503

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooManyRequests(FarmError):
    """A tenant asks more often than it may.

    ``limit_name`` is the limit that was reached, ``limit`` its value and ``remaining`` what is left of it;
    ``retry_after_s`` is when to ask again, ``reset_s`` when all of it is there again.
    """

    code = "rate_limited"
    retryable = True
    http_status = 429

    def __init__(
        self,
        message: str,
        limit_name: str,
        limit: float,
        remaining: float = 0,
        retry_after_s: float = 1.0,
        reset_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.limit_name = limit_name
        self.limit = limit
        self.remaining = remaining
        self.retry_after_s = retry_after_s
        self.reset_s = retry_after_s if reset_s is None else reset_s

    def __reduce__(self) -> tuple[type[TooManyRequests], tuple[object, ...]]:
        told = (self.limit_name, self.limit, self.remaining, self.retry_after_s, self.reset_s)
        return type(self), (str(self), *told)


class QuotaExceeded(TooManyRequests):
    """A tenant has as many queued jobs or tokens as it may; some must run first."""

    code = "quota_exceeded"


class ExceedsQuota(InvalidRequest):
    """What was submitted at once is more than its tenant may ever have queued; waiting does not help."""

    code = "exceeds_quota"


class DeadlineUnmeetable(FarmError):
    """As long as the queue is now, the answer would come far too late; ``eta_s`` is the estimate."""

    code = "deadline_unmeetable"
    http_status = 422

    def __init__(self, message: str, eta_s: float, deadline_s: float) -> None:
        super().__init__(message)
        self.eta_s = eta_s
        self.deadline_s = deadline_s

    def __reduce__(self) -> tuple[type[DeadlineUnmeetable], tuple[str, float, float]]:
        return type(self), (str(self), self.eta_s, self.deadline_s)


class JobNotFound(FarmError):
    """No job has this id."""

    code = "job_not_found"
    http_status = 404


class JobGone(JobNotFound):
    """The job existed, and its retention has passed."""

    code = "job_gone"
    http_status = 410


class ModelNotFound(FarmError):
    """No worker has served a model of this name."""

    code = "model_not_found"
    http_status = 404


class JobNotSucceeded(FarmError):
    """A job ended without a completion; ``job`` holds its partial text, error and history."""

    def __init__(self, message: str, job: JobView | None = None) -> None:
        super().__init__(message)
        self.job = job


class JobFailed(JobNotSucceeded):
    """The job failed for good."""

    code = "job_failed"


class JobDead(JobNotSucceeded):
    """The job was given up after it took too many workers or engines down."""

    code = "job_dead"


class JobExpired(JobNotSucceeded):
    """The job's deadline passed before it was finished."""

    code = "job_expired"
    http_status = 408


class JobCancelled(JobNotSucceeded):
    """Somebody cancelled the job."""

    code = "job_cancelled"
    http_status = 409


class JobNotDead(FarmError):
    """Only a dead job can be retried or purged by hand."""

    code = "job_not_dead"
    http_status = 409


class ModelRefused(FarmError):
    """A checkpoint can't be served: missing, of another architecture, or holding pickled weights."""

    code = "model_refused"


class LedgerTooNew(FarmError):
    """A newer version of the farm has written to the ledger in a schema that this one does not know."""

    code = "ledger_too_new"


class AnswerRestarted(FarmError):
    """A job began anew, since its tokens are of a revision of the model that is no longer served.

    What was streamed before is void; its result or a stream from the start has the whole answer.
    """

    code = "answer_restarted"
    retryable = True
    http_status = 503


class EngineLost(FarmError):
    """The engine process died or hung."""

    code = "engine_lost"
    retryable = True
    http_status = 503


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the known name nearest to a misspelt one: ``"; did you mean 'x'?"``, or nothing."""
    found = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""
