"""What tenants used: jobs and tokens by day. The ledger writes it once, when a job ends."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from farm import keys
from farm.connection import our_errors
from farm.errors import InvalidRequest
from farm.ledger.jobs import Jobs
from farm.ledger.tenants import check_name

MOST_DAYS = 36_500


@dataclass(frozen=True, slots=True)
class UsageDay:
    """One tenant's jobs that ended on one day, and their tokens.

    day: of the server's clock, in UTC. resumed_tokens: completion tokens that the last attempt found there and did not
    compute again.
    """

    tenant: str
    day: date
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    dead: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    resumed_tokens: int = 0

    @property
    def jobs(self) -> int:
        """Jobs that ended, however."""
        return self.succeeded + self.failed + self.cancelled + self.expired + self.dead

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def to_dict(self) -> dict[str, Any]:
        """As JSON for people and programs."""
        body = asdict(self)
        return {**body, "day": self.day.isoformat(), "jobs": self.jobs, "total_tokens": self.total_tokens}


def read_usage(jobs: Jobs, tenant: str | None = None, *, days: int = 30) -> list[UsageDay]:
    """Usage of the latest ``days`` days, today included, the oldest day first; of all tenants unless one is named.

    Days without a job are left out. Raises InvalidRequest, ServerUnreachable.
    """
    if tenant is not None:
        check_name(tenant)
    if not 1 <= days <= MOST_DAYS:
        raise InvalidRequest("days", f"{days} is out of range; give 1 to {MOST_DAYS}")
    with our_errors(jobs.where), jobs.client.pipeline(transaction=False) as pipe:
        today = datetime.fromtimestamp(jobs.client.time()[0], UTC).date()
        past = [today - timedelta(days=back) for back in reversed(range(days))]
        owners = [{tenant}] * days if tenant is not None else _owners(pipe, past)
        wanted = [(name, day) for day, names in zip(past, owners, strict=True) for name in sorted(names)]
        for name, day in wanted:
            pipe.hgetall(keys.usage(name, day.isoformat()))
        found = pipe.execute()
    return [
        UsageDay(name, day, **{field: int(value) for field, value in account.items()})
        for (name, day), account in zip(wanted, found, strict=True)
        if account
    ]


def _owners(pipe: Any, past: list[date]) -> list[set[str]]:
    for day in past:
        pipe.smembers(keys.used(day.isoformat()))
    owners: list[set[str]] = pipe.execute()
    return owners
