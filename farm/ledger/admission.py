"""What is let in: room for a long list, deadlines that can be met, and the refusals of ``submit.lua`` as errors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from farm.connection import server_full
from farm.contracts import Priority
from farm.errors import DeadlineUnmeetable, ExceedsQuota, FarmError, IdempotencyConflict, QueueFull, QuotaExceeded
from farm.ledger.forecast import Standing
from farm.ledger.records import Submission

Word = str | list[str]
"""What ``submit.lua`` says to a job: new, same, conflict, full; or why there is no room."""

_NOUNS = {"max_queued_jobs": "jobs", "queued_jobs": "jobs", "queued_tokens": "tokens"}


def hopeless(
    submissions: Sequence[Submission], newcomer: Callable[[str, Priority, str], Standing]
) -> list[tuple[Submission, float]]:
    """The jobs whose deadlines can't be met, each with the seconds that it would take.

    newcomer: where a job of a model, priority and tenant would stand; asked once for each that has deadlines. A job of
    the list waits for those before it, too.
    """
    late: list[tuple[Submission, float]] = []
    if all(job.request.deadline_s is None for job in submissions):
        return late
    before: Counter[tuple[str, Priority, str]] = Counter()
    standings: dict[tuple[str, Priority, str], Standing] = {}
    for job in submissions:
        request, line = job.request, (job.model, job.request.priority, job.tenant)
        if request.deadline_s is not None:
            if line not in standings:
                standings[line] = newcomer(*line)
            least = request.max_tokens if request.ignore_eos else request.min_tokens
            eta_s = standings[line].too_late_s(least, request.max_tokens, request.deadline_s, later=before[line])
            if eta_s is not None:
                late.append((job, eta_s))
        before[line] += 1
    return late


def too_late(job: Submission, eta_s: float) -> DeadlineUnmeetable:
    """The error for a job whose deadline can't be met."""
    deadline_s = job.request.deadline_s or 0.0
    about = f"{eta_s:,.0f}" if eta_s >= 10 else f"{eta_s:.2g}"
    return DeadlineUnmeetable(
        f"deadline_s: the answer would take about {about} s, far more than {deadline_s:g}; give it more time or a "
        "higher priority, or submit when less is queued",
        eta_s,
        deadline_s,
    )


class Rest:
    """What a caller has still to send after a call: jobs as (id, tenant, tokens)."""

    def __init__(self, jobs: Iterable[tuple[str, str, int]]) -> None:
        self._left: dict[str, tuple[str, int]] = {}
        self._sums: dict[str, tuple[int, int]] = {}
        for job_id, tenant, tokens in jobs:
            if job_id not in self._left:
                self._left[job_id] = (tenant, tokens)
                self._add(tenant, 1, tokens)

    def __bool__(self) -> bool:
        return bool(self._left)

    @property
    def ids(self) -> list[str]:
        return list(self._left)

    def sent(self, job_ids: Iterable[str]) -> None:
        """Count these no more."""
        for job_id in job_ids:
            if (left := self._left.pop(job_id, None)) is not None:
                self._add(left[0], -1, -left[1])

    def to_json(self) -> str:
        """Jobs and tokens by tenant, as the script reads them; '' for none."""
        return json.dumps({tenant: sums for tenant, sums in self._sums.items() if sums[0]}) if self._left else ""

    def _add(self, tenant: str, jobs: int, tokens: int) -> None:
        had = self._sums.get(tenant, (0, 0))
        self._sums[tenant] = (had[0] + jobs, had[1] + tokens)


def is_refused(word: Word) -> bool:
    """Whether what ``submit.lua`` answered for a job, or for all, is a refusal for lack of room."""
    return word == "full" or not isinstance(word, str)


def refusal(word: Word, where: str) -> FarmError | None:
    """The error that it means; None for a job that is there."""
    if word == "full":
        return server_full(where)
    if isinstance(word, str):
        return None
    name, tenant, *numbers = word
    limit, taken, more, wait_ms = map(int, numbers)
    who, noun, wait_s = f"tenant {tenant}" if tenant else "the farm", _NOUNS[name], wait_ms / 1000
    if more > limit:
        return ExceedsQuota(name, f"{more:,} {noun} at once > {limit:,}, all that {who} may have queued; submit less")
    held = f"{who} has {taken:,} of at most {limit:,} {noun} queued, and {more:,} more don't fit"
    if not tenant:
        return QueueFull(f"{held}; try again in {wait_s:.0f} s", wait_s)
    return QuotaExceeded(
        f"{held}; try again in {wait_s:.0f} s, when some have run", name, limit, max(0, limit - taken), wait_s
    )


def outcome(job: Submission, word: Word, where: str) -> bool | FarmError:
    """Whether a job is new, or the error that the script's word for it means."""
    error = conflict(job) if word == "conflict" else refusal(word, where)
    return word == "new" if error is None else error


def conflict(job: Submission) -> IdempotencyConflict:
    """The error for an id that another request has."""
    return IdempotencyConflict(
        f"job {job.id} exists with another request; use another idempotency key or send the same request"
    )
