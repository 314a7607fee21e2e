"""The task ``farm.generate``: one delivery of one job.

A message from the keeper names a job and a dispatch. A message from a foreign Celery app carries a request instead: it
is adopted into the ledger, and the keeper dispatches it like any other; its headers travel along, so that ``.get()``
and canvas work. Whatever a delivery can't use is dropped with ``Ignore``, which stores no result.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sized
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import structlog
from celery import Celery, Task
from celery.exceptions import Ignore, Reject, Retry

from farm import schema
from farm.broker import TASK
from farm.contracts import JobState, Request, may_show_id, parse_request
from farm.errors import (
    DeadlineUnmeetable,
    FarmError,
    IdempotencyConflict,
    InvalidRequest,
    QueueFull,
    QuotaExceeded,
    ServerFull,
    ServerUnreachable,
)
from farm.ledger.attempts import Claim, Refusal
from farm.patience import patiently
from farm.results import JobError, JobView
from workers.aboard import Ending
from workers.redaction import Figures, PlainResult

if TYPE_CHECKING:
    from workers.host import Host

log = structlog.get_logger(__name__)

REQUEUE_PAUSE_S = 2.0  # a server that is short of memory should not be asked all the time

# What of a foreign message makes callbacks, groups and chords go on, by apply_async's names for them.
_CANVAS = {
    "callbacks": "link",
    "errbacks": "link_error",
    "chord": "chord",
    "chain": "chain",
    "group": "group_id",
    "group_index": "group_index",
    "root_id": "root_id",
    "parent_id": "parent_id",
    "reply_to": "reply_to",
}


class GenerationFailed(FarmError):
    """A job did not succeed; the message names the code and the reason."""

    code = "generation_failed"


def register(app: Celery, host: Host) -> None:
    """Give the app its task."""

    class Delivery(Task[Any, Any]):
        """Notes that a plain job's result is stored."""

        def after_return(self, _status: str, value: Any, task_id: str, *_rest: Any) -> None:
            if isinstance(value, (PlainResult, GenerationFailed)):
                host.delivered(task_id)

    @app.task(
        name=TASK,
        bind=True,
        base=Delivery,
        Request="workers.delivery:MovingRequest",
        Strategy="workers.redaction:strategy",
        acks_late=True,
        max_retries=None,
        shared=False,
        typing=False,
        throws=(GenerationFailed,),
    )
    def generate(task: Task[Any, Any], /, *args: Any, **kwargs: Any) -> PlainResult | Figures:
        """Run one delivery."""
        try:
            if "job" in kwargs:
                if (number := kwargs.get("schema", schema.FIRST)) not in range(schema.FIRST, schema.READS + 1):
                    return _leave_to_others("message", kwargs["job"], number)
                return _deliver(host, task, kwargs["job"], kwargs.get("dispatch"))
            return _adopt(host, task, args, kwargs)
        except ServerUnreachable:
            # What is known to nobody is delivered again: leases end, unclaimed messages and unstored results return.
            raise Ignore from None


def _deliver(host: Host, task: Task[Any, Any], job_id: object, dispatch: object) -> PlainResult | Figures:
    """Claim a dispatched job, run it, report how it ended."""
    if not isinstance(job_id, str) or not isinstance(dispatch, int):
        raise GenerationFailed("invalid_request: job and dispatch are the keeper's to send; send a prompt")
    is_plain = not task.request.ignore_result
    if host.runner is None:
        return _stored_outcome(host, task, job_id) if is_plain else _drop("no engine here")
    host.runner.wait_until_open()
    # With one nonce, so that a claim whose answer is lost is not lost itself; after a lease somebody else has it.
    claim = patiently(partial(host.attempts.claim, job_id, dispatch, secrets.token_hex(8)), host.settings.lease.lease_s)
    if isinstance(claim, Refusal) and claim.reason == "newer":
        _leave_to_others("job", job_id, None)
    if isinstance(claim, Refusal):
        if is_plain and claim.reason == "unknown":
            raise GenerationFailed(f"job_gone: job {_shown(job_id)} is not known here")
        return _stored_outcome(host, task, job_id) if is_plain and claim.reason == "ended" else _drop(claim.reason)
    waited_s = claim.age_s if claim.attempt == 1 else None
    ending = host.runner.run(claim)
    return _report(host, task, claim, ending, Figures(ending.tokens, waited_s))


def _report(host: Host, task: Task[Any, Any], claim: Claim, ending: Ending, figures: Figures) -> PlainResult | Figures:
    """Tell Celery, so that Flower shows the job's state."""
    if ending.state is JobState.QUEUED and ending.error is not None:
        raise Retry(ending.reason, exc=GenerationFailed(f"{ending.error.code}: {ending.error.message}"))
    if ending.state is JobState.QUEUED and ending.reason != "drain":
        raise Retry(ending.reason, exc=GenerationFailed(ending.reason))
    if ending.state is JobState.QUEUED:
        raise Ignore
    if claim.is_plain:
        return _stored_outcome(host, task, claim.id)
    if ending.state is JobState.SUCCEEDED:
        return figures
    raise _unsuccessful(task, claim.id, ending.state or _state_now(host, claim.id), ending.error)


def _stored_outcome(host: Host, task: Task[Any, Any], job_id: str) -> PlainResult:
    """The outcome of a plain Celery job that has ended; a delivery too many gets it again."""
    view = _view(host, job_id)
    if view is None or not view.state.is_terminal:
        raise Ignore
    if view.state is JobState.SUCCEEDED:
        return PlainResult(plain_body(view))
    raise _unsuccessful(task, job_id, view.state, view.error)


def _unsuccessful(task: Task[Any, Any], job_id: str, state: JobState | None, error: JobError | None) -> Exception:
    """What to raise for a job that ended without a completion."""
    if state is JobState.CANCELLED:
        task.send_event("task-revoked", terminated=True, signum=None, expired=False)
        if not task.request.ignore_result:
            task.backend.mark_as_revoked(job_id, "cancelled", request=task.request, store_result=True)
        return Ignore()
    if state is None or not state.is_terminal:
        return Ignore()
    return GenerationFailed(f"{error.code}: {error.message}" if error else state.value)


def _adopt(host: Host, task: Task[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> PlainResult:
    """Write a foreign request into the ledger; from then on it is as safe as any."""
    headers = {ours: getattr(task.request, theirs, None) for theirs, ours in _CANVAS.items()}
    is_canvas = any(headers[name] for name in ("link", "link_error", "chord", "chain", "group_id"))
    headers["ignore_result"] = bool(task.request.ignore_result)
    plain = json.dumps(headers) if is_canvas or not task.request.ignore_result else ""
    try:
        request = _foreign_request(host, args, kwargs)
        submission = host.jobs.place(request, job_id=task.request.id, plain=plain)
        [is_new] = host.jobs.submit([submission])
    except (ServerUnreachable, ServerFull, QueueFull, QuotaExceeded) as error:
        host.leave_foreign(REQUEUE_PAUSE_S)
        raise Reject(error, requeue=True) from error
    except (InvalidRequest, IdempotencyConflict, DeadlineUnmeetable) as error:
        raise GenerationFailed(f"{error.code}: {error}") from None
    if is_new:
        raise Ignore
    return _stored_outcome(host, task, submission.id)


def _foreign_request(host: Host, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Request:
    if len(args) > 1 or (args and "prompt" in kwargs):
        raise InvalidRequest("prompt", "give one prompt, by position or by name, and all else by name")
    values = {**({"prompt": args[0]} if args else {}), **kwargs}
    if "model" not in values:
        values["model"] = host.settings.model.name
    request = parse_request(values)
    host.jobs.check_model(host.jobs.place(request).model)
    return request


def plain_body(view: JobView) -> dict[str, Any]:
    """A completion as a plain Celery caller gets it."""
    return {**view.to_dict(), "token_ids": view.token_ids}


def _view(host: Host, job_id: str) -> JobView | None:
    [view] = host.jobs.views([job_id])
    return view


def _state_now(host: Host, job_id: str) -> JobState | None:
    view = _view(host, job_id)
    return view.state if view else None


def _leave_to_others(what: str, job_id: object, number: object) -> NoReturn:
    """Leave what a newer version wrote to workers of that version. It waits for one."""
    log.warning(
        "newer_schema_left_to_others",
        what=what,
        job=_shown(job_id),
        schema=number if isinstance(number, int) else None,
        known=schema.READS,
        remedy="run workers of the version that wrote it",
    )
    raise Ignore


def _shown(job_id: object) -> str:
    """What a stranger's message calls a job, for people: an id, or only what it is instead, for it may be a prompt."""
    if may_show_id(job_id):
        return job_id
    return f"({type(job_id).__name__} of {len(job_id)})" if isinstance(job_id, Sized) else f"({type(job_id).__name__})"


def _drop(reason: str) -> NoReturn:
    log.debug("delivery_dropped", reason=reason)
    raise Ignore
