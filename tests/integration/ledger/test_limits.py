"""How much a tenant, and all of them, may have queued, and how often one may ask."""

from __future__ import annotations

import pickle

import pytest

from farm import keys
from farm.errors import DeadlineUnmeetable, ExceedsQuota, FarmError, QueueFull, QuotaExceeded, TooManyRequests
from farm.ledger.jobs import Jobs
from farm.ledger.tenants import Tenants
from farm.settings import load_settings
from tests.conftest import wait_until
from tests.integration.ledger.farmhand import Field

COST = 100 + len("Once") // 4 + 1


def limit(field: Field, **limits: object) -> Field:
    """The same farm with these limits in its settings."""
    field.jobs.settings = load_settings(redis={"url": field.jobs.settings.redis.url}, limits=limits)
    return field


def queue(field: Field, count: int = 1, tenant: str = "ann", **more: object) -> list[str]:
    return field.submit(count, tenant=tenant, max_tokens=100, **more)


def refused(field: Field, count: int = 1, tenant: str = "ann") -> FarmError:
    """The error of a submission that leaves everything as it was."""
    before = field.dump()
    with pytest.raises(FarmError) as error:
        queue(field, count, tenant)
    assert field.dump() == before
    return error.value


def test_a_tenant_queues_as_many_jobs_as_it_may(field: Field) -> None:
    """One more is refused with limit, rest and a time to ask again; another tenant is not touched by it."""
    limit(field, queued_jobs=3)
    queue(field, 2)
    error = refused(field, 2)
    assert isinstance(error, QuotaExceeded)
    assert (error.code, error.http_status, error.retryable) == ("quota_exceeded", 429, True)
    assert (error.limit_name, error.limit, error.remaining) == ("queued_jobs", 3, 1)
    assert 1 <= error.retry_after_s <= 60
    assert "tenant ann has 2 of at most 3 jobs queued, and 2 more don't fit" in str(error)
    queue(field, 1)
    queue(field, 3, "ben")


def test_a_tenant_queues_as_many_tokens_as_it_may(field: Field) -> None:
    """Prompt and max_tokens of all that waits are counted, so that few long jobs weigh as much as many short ones."""
    limit(field, queued_tokens=3 * COST)
    queue(field, 2)
    error = refused(field, 2)
    assert isinstance(error, QuotaExceeded)
    assert (error.limit_name, error.limit, error.remaining) == ("queued_tokens", 3 * COST, COST)
    queue(field, 1)


def test_running_jobs_are_not_queued(field: Field) -> None:
    """A claim makes room, a job that comes back takes it again, even beyond the limit: what is accepted stays."""
    limit(field, queued_jobs=2)
    jobs = queue(field, 2)
    hand = field.worker(capacity=2)
    field.run(hand, jobs[0])
    jobs += queue(field, 1)
    assert isinstance(refused(field), QuotaExceeded)
    hand.release("drain", "drain")
    assert Tenants(field.jobs).get("ann").queued_jobs == 3
    field.jobs.cancel(jobs[:2])
    queue(field, 1)


def test_the_farm_takes_so_many_jobs(field: Field) -> None:
    """A full queue refuses everyone with 503, whatever a tenant may have of its own."""
    limit(field, max_queued_jobs=5)
    Tenants(field.jobs).change("ben", limits={"queued_jobs": 100})
    queue(field, 3)
    queue(field, 2, "ben")
    error = refused(field, 1, "ben")
    assert isinstance(error, QueueFull)
    assert (error.code, error.http_status, error.retryable) == ("queue_full", 503, True)
    assert 1 <= error.retry_after_s <= 60


def test_what_never_fits_is_no_matter_of_waiting(field: Field) -> None:
    """More at once than a tenant may ever have queued is the caller's error, not one to retry."""
    limit(field, queued_jobs=3)
    error = refused(field, 4)
    assert isinstance(error, ExceedsQuota)
    assert (error.http_status, error.retryable, error.field) == (400, False, "queued_jobs")
    assert "4 jobs at once > 3, all that tenant ann may have queued" in str(error)


def test_a_repetition_needs_no_room(field: Field) -> None:
    """Jobs that are there are the same again, however full it is, beside new ones or not, in one call or in several."""
    limit(field, queued_jobs=250)
    placed = [field.place(tenant="ann", job_id=f"job-{n}", max_tokens=100) for n in range(250)]
    field.jobs.submit(placed[100:])
    assert field.jobs.submit([*placed[:50], *placed[100:]]) == [True] * 50 + [False] * 150
    assert field.jobs.submit(placed) == [False] * 50 + [True] * 50 + [False] * 150
    assert field.jobs.submit([*placed, *placed]) == [False] * 500


def test_a_long_list_is_refused_before_any_of_it_is_written(field: Field) -> None:
    """The first of several calls asks for room for all of them."""
    limit(field, queued_jobs=300, queued_tokens=1_000_000)
    queue(field, 51)
    assert isinstance(refused(field, 250), QuotaExceeded)
    queue(field, 249)
    limit(field, queued_tokens=500 * COST, max_queued_jobs=10_000)
    assert isinstance(refused(field, 201), QuotaExceeded)
    limit(field, max_queued_jobs=400)
    assert isinstance(refused(field, 101, "ben"), QueueFull)
    queue(field, 100, "ben")


def test_one_list_of_two_tenants_is_counted_for_each(field: Field) -> None:
    """Each tenant is held to its own limit; if one has no room, nothing of the call is written."""
    limit(field, queued_jobs=2)
    placed = [field.place(tenant=tenant) for tenant in ("ann", "ben", "ann", "ben", "ben")]
    with pytest.raises(ExceedsQuota, match="tenant ben"):
        field.jobs.submit(placed)
    assert Tenants(field.jobs).list() == []
    assert field.jobs.submit(placed[:4]) == [True] * 4


def test_the_time_to_ask_again_follows_the_pace(field: Field) -> None:
    """With jobs ending at a known pace, a refused caller is told how long the surplus takes."""
    limit(field, queued_jobs=2)
    queue(field, 2)
    unknown = refused(field)
    field.client.hset(keys.rate("tiny-bloom"), mapping={"at": field.client.time()[0] * 1000, "per_s": 0.125})
    measured = refused(field)
    assert isinstance(unknown, QuotaExceeded)
    assert isinstance(measured, QuotaExceeded)
    assert (unknown.retry_after_s, round(measured.retry_after_s)) == (5, 8)


def test_an_idle_tenant_leaves_nothing_behind(field: Field) -> None:
    """When its last job has gone, a tenant's counters have, too."""
    [job] = queue(field)
    assert [tenant.name for tenant in Tenants(field.jobs).list()] == ["ann"]
    field.jobs.cancel([job])
    assert Tenants(field.jobs).list() == []
    assert not field.client.exists(keys.WAITING_JOBS, keys.WAITING_TOKENS)


def test_requests_come_at_a_rate_with_a_burst(field: Field) -> None:
    """A tenant may send its burst at once, then as many as its rate gives back; what is refused costs nothing."""
    tenants = Tenants(limit(field, requests_per_s=5, queued_jobs=7).jobs)
    queue(field, 2)
    seen = [tenants.take("ann") for _ in range(12)]
    assert [one.is_allowed for one in seen] == [True] * 10 + [False] * 2
    assert [one.requests_left for one in seen[:10]] == list(range(9, -1, -1))
    first, last = seen[0], seen[-1]
    assert (first.burst, first.queued_jobs, first.queued_jobs_limit) == (10, 2, 7)
    assert (first.queued_tokens, first.queued_tokens_limit, first.retry_after_s) == (2 * COST, None, 0)
    assert 0 < last.retry_after_s <= 0.2
    assert 1.5 < last.reset_s <= 2
    with pytest.raises(TooManyRequests, match="tenant ann sent more than its 10 requests at once") as error:
        last.check()
    assert (error.value.code, error.value.limit_name, error.value.limit) == ("rate_limited", "requests", 10)
    assert tenants.take("ben").is_allowed
    field.later(400)
    pace = float(field.client.get(f"{keys.PREFIX}pace:ann") or 0)
    field.client.set(f"{keys.PREFIX}pace:ann", pace - 400)
    assert [tenants.take("ann").is_allowed for _ in range(3)] == [True, True, False]


def test_a_tenants_bucket_empties_itself(field: Field) -> None:
    """Nothing is kept of a tenant that does not ask: the key ends when the bucket is full again."""
    tenants = Tenants(limit(field, requests_per_s=100).jobs)
    tenants.take("ann")
    assert 0 < field.client.pttl(f"{keys.PREFIX}pace:ann") <= 10
    wait_until(lambda: not field.client.exists(f"{keys.PREFIX}pace:ann"), why="the bucket to be full")


def test_without_limits_nobody_is_refused(field: Field) -> None:
    """A farm whose settings say nothing counts, and refuses nobody."""
    tenants = Tenants(field.jobs)
    assert all(tenants.take("ann").is_allowed for _ in range(100))
    assert not field.client.exists(f"{keys.PREFIX}pace:ann")
    queue(field, 300)
    assert tenants.take("ann").queued_jobs == 300


def test_requests_of_many_are_counted_in_one_call(field: Field) -> None:
    """Each name is one request of that tenant, against its own limits."""
    tenants = Tenants(limit(field, requests_per_s=1).jobs)
    tenants.change("ben", limits={"burst": 1})
    taken = tenants.take_each(["ann", "ben", "ann", "ben", "ann"])
    assert [(one.tenant, one.is_allowed) for one in taken] == [
        ("ann", True),
        ("ben", True),
        ("ann", True),
        ("ben", False),
        ("ann", False),
    ]


def test_jobs_of_strangers_are_accepted_each_by_itself(field: Field) -> None:
    """In one call of many callers' jobs, whoever has no room is refused alone, and takes none of the others'."""
    limit(field, queued_jobs=2, max_queued_jobs=6)
    tenants = ("ann", "ann", "ann", "ben", "ann", "ben", "cleo", "ben", "cleo", "dora")
    placed = [field.place(tenant=tenant, job_id=f"job-{n}") for n, tenant in enumerate(tenants)]
    placed += [placed[0], field.place("other", tenant="ann", job_id="job-0"), placed[2]]
    is_new = True
    for _ in range(2):
        words = field.jobs.submit_each(placed)
        refusals = [(n, word.code) for n, word in enumerate(words) if isinstance(word, FarmError)]
        assert refusals == [
            (2, "quota_exceeded"),
            (4, "quota_exceeded"),
            (7, "quota_exceeded"),
            (9, "queue_full"),
            (11, "idempotency_conflict"),
            (12, "quota_exceeded"),
        ]
        assert [word for word in words if isinstance(word, bool)] == [is_new] * 6 + [False]
        is_new = False
    assert {tenant.name: tenant.queued_jobs for tenant in Tenants(field.jobs).list()} == {"ann": 2, "ben": 2, "cleo": 2}


def test_a_stranger_s_hopeless_deadline_is_its_own(field: Field) -> None:
    """A deadline that can't be met refuses that job and no other of the call; one already there is answered."""
    hand = field.worker(capacity=1)
    for job in queue(field, 10):
        field.run(hand, job)
        field.later(2_000)
        hand.beat()
        hand.finish(job, tokens=10)
    there, late, other = (field.place(tenant="ann", deadline_s=deadline_s) for deadline_s in (5, 5, None))
    field.jobs.submit([there])
    queue(field, 20)
    first, second, third = field.jobs.submit_each([there, late, other])
    assert (first, third) == (False, True)
    assert isinstance(second, DeadlineUnmeetable)


@pytest.mark.parametrize(
    "error",
    [QuotaExceeded("no", "queued_jobs", 3, 1, 2.5), TooManyRequests("no", "requests", 3, 0, 1, 9), QueueFull("no", 4)],
)
def test_refusals_travel_between_processes(error: TooManyRequests | QueueFull) -> None:
    """An error that is pickled keeps its facts."""
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_a_server_that_lost_its_scripts_still_limits(field: Field, jobs: Jobs) -> None:
    """After a restart of the server the next request is counted as any."""
    tenants = Tenants(limit(field, requests_per_s=0.5).jobs)
    assert tenants.take("ann").is_allowed
    jobs.client.script_flush()
    assert not tenants.take("ann").is_allowed
