"""Who may queue how much: what ``submit.lua`` must know of a long list, and its refusals as errors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from farm.connection import server_full
from farm.errors import ExceedsQuota, FarmError, QueueFull, QuotaExceeded

_NOUNS = {"max_queued_jobs": "jobs", "queued_jobs": "jobs", "queued_tokens": "tokens"}


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


def refusal(answer: Sequence[str], where: str) -> FarmError | None:
    """The error in an answer of ``submit.lua``; None for an answer that holds a word per job."""
    if answer[0] == "full":
        return server_full(where)
    if answer[0] != "limit":
        return None
    name, tenant = answer[1:3]
    limit, taken, more, wait_ms = map(int, answer[3:])
    who, noun, wait_s = f"tenant {tenant}" if tenant else "the farm", _NOUNS[name], wait_ms / 1000
    if more > limit:
        return ExceedsQuota(name, f"{more:,} {noun} at once > {limit:,}, all that {who} may have queued; submit less")
    held = f"{who} has {taken:,} of at most {limit:,} {noun} queued, and {more:,} more don't fit"
    if not tenant:
        return QueueFull(f"{held}; try again in {wait_s:.0f} s", wait_s)
    return QuotaExceeded(
        f"{held}; try again in {wait_s:.0f} s, when some have run", name, limit, max(0, limit - taken), wait_s
    )
