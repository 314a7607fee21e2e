"""Usage: what each tenant's jobs took, by day."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
import redis

from farm import keys
from farm.errors import InvalidRequest
from farm.ledger.scripts import source
from farm.ledger.usage import UsageDay, read_usage
from farm.settings import load_settings
from tests.integration.ledger.farmhand import Field, succeeded


def today(field: Field) -> date:
    return datetime.fromtimestamp(field.client.time()[0], UTC).date()


def test_usage_counts_each_end_and_its_tokens_once(field: Field) -> None:
    """However a job ends, its tenant's account has it once, with the tokens it read, wrote and found there."""
    hand = field.worker(capacity=8)
    done, failing, stopped = field.submit(3, tenant="ann")
    waiting = field.submit(tenant="ann")[0]
    hurried = field.submit(tenant="ann", deadline_s=5)[0]
    field.run(hand, done)
    hand.write(done, 4)
    hand.release("drain", "drain")
    for job in (done, failing, stopped):
        field.run(hand, job)
    run = hand.runs[done]
    for _ in range(2):
        hand.attempts.finish(run.advance(), succeeded())
    hand.write(stopped, 2)
    field.jobs.cancel([stopped, stopped, waiting])
    field.jobs.cancel([stopped])
    field.later(6_000)
    field.keep()
    field.keep()
    assert field.state(hurried) == "expired"
    [account] = read_usage(field.jobs, "ann", days=1)
    assert (account.tenant, account.day) == ("ann", today(field))
    assert (account.succeeded, account.cancelled, account.expired, account.failed, account.dead) == (1, 2, 1, 0, 0)
    assert (account.prompt_tokens, account.completion_tokens, account.resumed_tokens) == (3 + 3, 4 + 2, 4)
    assert (account.jobs, account.total_tokens) == (4, 12)
    assert account.to_dict()["day"] == today(field).isoformat()


def test_usage_is_told_by_day_and_tenant(field: Field) -> None:
    """The oldest day first, then by tenant; days without a job are left out, and so is what lies before."""
    for tenant in ("ben", "ann"):
        field.jobs.cancel(field.submit(2, tenant=tenant))
    day = today(field)
    for back, jobs in ((2, 5), (9, 7)):
        then = (day - timedelta(days=back)).isoformat()
        field.client.hset(keys.usage("ben", then), "cancelled", jobs)
        field.client.sadd(keys.used(then), "ben")
    told = read_usage(field.jobs, days=9)
    assert [(account.tenant, account.day, account.cancelled) for account in told] == [
        ("ben", day - timedelta(days=2), 5),
        ("ann", day, 2),
        ("ben", day, 2),
    ]
    assert read_usage(field.jobs, "ben", days=1) == [UsageDay("ben", day, cancelled=2)]
    assert [account.cancelled for account in read_usage(field.jobs, "ben", days=10)] == [7, 5, 2]
    assert read_usage(field.jobs, "nobody") == []
    field.client.flushall()


def test_usage_is_kept_for_so_many_days(field: Field) -> None:
    """Accounts end by themselves after FARM_LIMITS__USAGE_DAYS, 400 unless a keeper says otherwise."""

    def days_left() -> list[float]:
        names = (keys.usage("ann", today(field).isoformat()), keys.used(today(field).isoformat()))
        return [round(field.client.ttl(name) / 86400, 2) for name in names]

    field.jobs.cancel(field.submit(tenant="ann"))
    assert days_left() == [400, 400]
    field.client.flushall()
    field.jobs.settings = load_settings(redis={"url": field.jobs.settings.redis.url}, limits={"usage_days": 3})
    field.keep()
    field.jobs.cancel(field.submit(tenant="ann"))
    assert days_left() == [3, 3]


def test_the_server_s_date_is_the_calendar_s(client: redis.Redis) -> None:
    """The script's dates are those of Python's calendar, over leap years and centuries."""
    tell = source("cancel").split("local answer, lines")[0].partition("\n")[2]
    tell += "\nlocal days = {}\nfor i, ms in ipairs(ARGV) do NOW = tonumber(ms); days[i] = today() end\nreturn days"
    days = [date(1970, 1, 1) + timedelta(days=n) for n in (*range(0, 200_000, 97), *range(20_000, 21_600))]
    moments = [int(datetime(d.year, d.month, d.day, tzinfo=UTC).timestamp() * 1000) for d in days]
    for within in (0, 86_399_999):
        said = client.eval(tell, 1, keys.PREFIX, *(moment + within for moment in moments))
        assert said == [day.isoformat() for day in days]


@pytest.mark.parametrize("wrong", [{"days": 0}, {"days": 36_501}, {"tenant": "a b"}])
def test_a_wrong_question_is_refused(field: Field, wrong: dict[str, object]) -> None:
    """A name that nobody can have, or no number of days, is an error that says so."""
    with pytest.raises(InvalidRequest):
        read_usage(field.jobs, **wrong)  # type: ignore[arg-type]
