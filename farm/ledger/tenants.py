"""Tenants: who shares the farm, by which weight, within which limits.

A tenant need not be made: it is there from its first job on, with weight 1 and the limits of the settings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from farm import keys
from farm.connection import our_errors
from farm.contracts import SAFE_NAME
from farm.errors import InvalidRequest, TooManyRequests, nearest
from farm.ledger.jobs import Jobs

LIMITS = ("requests_per_s", "burst", "queued_jobs", "queued_tokens")
MOST_WEIGHT = 1000
_HASHES = (keys.WEIGHTS, keys.LIMITS, keys.WAITING_JOBS, keys.WAITING_TOKENS)
BURST_S = 2.0  # a bucket without a size of its own holds the requests of so long


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tenant may have; None: any number.

    requests_per_s: HTTP requests in the long run. burst: how many of them at once. queued_jobs, queued_tokens: what
    waits for its turn; running jobs don't count.
    """

    requests_per_s: float | None = None
    burst: int | None = None
    queued_jobs: int | None = None
    queued_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant. ``own`` names the limits that were set for it; the others are the settings'."""

    name: str
    weight: float
    limits: Limits
    own: tuple[str, ...]
    queued_jobs: int
    queued_tokens: int


@dataclass(frozen=True, slots=True)
class Allowance:
    """Whether one more request was allowed, and what its tenant has left. A limit of None: any number.

    burst: requests that may come at once; of them ``requests_left`` are left, all again after ``reset_s``.
    """

    tenant: str
    is_allowed: bool
    burst: int | None
    requests_left: int
    reset_s: float
    retry_after_s: float
    queued_jobs: int
    queued_jobs_limit: int | None
    queued_tokens: int
    queued_tokens_limit: int | None

    def check(self) -> None:
        """Raise TooManyRequests unless the request was allowed."""
        if not self.is_allowed:
            raise TooManyRequests(
                f"tenant {self.tenant} sent more than its {self.burst or 0:,} requests at once; "
                f"try again in {self.retry_after_s:.3g} s",
                "requests",
                self.burst or 0,
                0,
                self.retry_after_s,
                self.reset_s,
            )


class Tenants:
    """Weights and limits. Thread-safe."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs

    def get(self, name: str) -> Tenant:
        """A tenant as it stands. Raises InvalidRequest for what can't be a tenant's name."""
        check_name(name)
        with our_errors(self.jobs.where), self.jobs.client.pipeline(transaction=False) as pipe:
            for key in _HASHES:
                pipe.hget(key, name)
            return self._tenant(name, *pipe.execute())

    def list(self) -> list[Tenant]:
        """The tenants that have a key, a weight or limits of their own, or something queued; by name."""
        with our_errors(self.jobs.where), self.jobs.client.pipeline(transaction=False) as pipe:
            for key in _HASHES:
                pipe.hgetall(key)
            pipe.hvals(keys.API_KEYS)
            *found, records = pipe.execute()
        names = {json.loads(record)["tenant"] for record in records}.union(*found)
        return [self._tenant(name, *(values.get(name) for values in found)) for name in sorted(names)]

    def change(
        self, name: str, *, weight: float | None = None, limits: Mapping[str, float | None] | None = None
    ) -> Tenant:
        """Set what is given and leave the rest. Returns the tenant as it stands then.

        limits: by name; None goes back to the settings' default, ``math.inf`` is no limit.
        Raises InvalidRequest before anything is written.
        """
        check_name(name)
        check_weight(weight)
        wanted = {limit: check_limit(limit, value) for limit, value in (limits or {}).items()}
        if wanted:
            self._merge(name, wanted)
        if weight is not None:
            with our_errors(self.jobs.where):
                self.jobs.client.hset(keys.WEIGHTS, name, f"{weight:g}")
        return self.get(name)

    def take(self, name: str) -> Allowance:
        """Count one request of a tenant, unless it has none left."""
        [allowance] = self.take_each([name])
        return allowance

    def take_each(self, names: Sequence[str]) -> Sequence[Allowance]:
        """Count one request for each name; a tenant may be named many times. A hundred names keep the call short."""
        limits = self.jobs.settings.limits
        defaults = (limits.requests_per_s or "", limits.queued_jobs or "", limits.queued_tokens or "")
        answers = self.jobs.scripts.call("take", *defaults, *names)
        return [_allowance(name, answer) for name, answer in zip(names, answers, strict=True)]

    def _merge(self, name: str, wanted: Mapping[str, float | None]) -> None:
        def change(pipe: Any) -> None:
            own = json.loads(pipe.hget(keys.LIMITS, name) or "{}")
            for limit, value in wanted.items():
                own.pop(limit, None)
                if value is not None:
                    own[limit] = None if value == math.inf else value  # JSON knows no infinity
            pipe.multi()
            if own:
                pipe.hset(keys.LIMITS, name, json.dumps(own, sort_keys=True))
            else:
                pipe.hdel(keys.LIMITS, name)

        with our_errors(self.jobs.where):
            self.jobs.client.transaction(change, keys.LIMITS)

    def _tenant(self, name: str, weight: str | None, own: str | None, jobs: str | None, tokens: str | None) -> Tenant:
        settings = self.jobs.settings.limits
        set_here: dict[str, Any] = json.loads(own) if own else {}
        values = {limit: set_here.get(limit, getattr(settings, limit, None)) for limit in LIMITS}
        if "burst" not in set_here and values["requests_per_s"]:
            values["burst"] = burst_of(values["requests_per_s"])
        names = tuple(limit for limit in LIMITS if limit in set_here)
        return Tenant(name, float(weight or 1), Limits(**values), names, int(jobs or 0), int(tokens or 0))


def _allowance(name: str, answer: Sequence[str | int]) -> Allowance:
    is_allowed, burst, left, reset_ms, retry_ms, jobs, most_jobs, tokens, most_tokens = (
        int(value) if value != "" else None for value in answer
    )
    return Allowance(
        tenant=name,
        is_allowed=bool(is_allowed),
        burst=burst,
        requests_left=left or 0,
        reset_s=(reset_ms or 0) / 1000,
        retry_after_s=(retry_ms or 0) / 1000,
        queued_jobs=jobs or 0,
        queued_jobs_limit=most_jobs,
        queued_tokens=tokens or 0,
        queued_tokens_limit=most_tokens,
    )


def burst_of(requests_per_s: float) -> int:
    """How many requests may come at once where nobody said."""
    return max(1, math.ceil(BURST_S * requests_per_s))


def check_name(name: str) -> None:
    """Raise InvalidRequest for what can't be a tenant's name."""
    if not SAFE_NAME.match(name):
        raise InvalidRequest("tenant", f"{name[:60]!r} is no name; use up to 128 letters, digits, '.', '_' and '-'")


def check_weight(weight: float | None) -> None:
    """Raise InvalidRequest for a weight that is out of range."""
    if weight is not None and not 0 < weight <= MOST_WEIGHT:
        raise InvalidRequest("weight", f"{weight:g} is out of range; give more than 0 and at most {MOST_WEIGHT}")


def check_limit(name: str, value: float | None) -> float | None:
    """A limit's value as it is kept. Raises InvalidRequest for a name that no limit has or a value out of range."""
    if name not in LIMITS:
        raise InvalidRequest("limit", f"{name[:60]!r} is no limit; known: {', '.join(LIMITS)}{nearest(name, LIMITS)}")
    if value is None or value == math.inf:
        return value
    if name == "requests_per_s":
        if not 0 < value <= 1e6:
            raise InvalidRequest(name, f"{value:g} is out of range; give more than 0 and at most 1000000")
        return value
    if not 1 <= value <= 1e15 or not float(value).is_integer():
        raise InvalidRequest(name, f"{value:g} is out of range; give a whole number from 1 on")
    return int(value)
