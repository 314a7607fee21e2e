"""Which results are kept when there are too many: nobody's flood pushes out what another has not yet fetched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farm import keys
from farm.contracts import JobState
from farm.ledger import dead
from farm.ledger.glance import glance
from farm.ledger.jobs import Jobs
from farm.ledger.upkeep import MOST, Upkeep
from farm.settings import load_settings
from tests.integration.ledger.farmhand import Field
from tests.integration.ledger.invariants import check

MOST_JOBS, MOST_BYTES = 12, 1 << 20
EARLIER = f"{keys.PREFIX}finished"
"""Where versions before this one list all results."""
TENANTS = ("ann", "ben", "cleo", "dan", "eve", "flood")


def bounded(field: Field, **limits: int) -> Field:
    """The same ledger under other bounds."""
    server = load_settings(redis={"url": field.jobs.settings.redis.url}, limits=limits)
    field.jobs = Jobs(server, field.client)
    field.keeper = Upkeep(field.jobs)
    field.client.delete(keys.LEADER)
    return field


def end(field: Field, tenant: str, count: int = 1, chars: int = 10) -> list[str]:
    """So many jobs of a tenant, each of so many bytes, that have ended."""
    ids = field.submit(count, prompt="x" * chars, tenant=tenant)
    field.jobs.cancel(ids)
    return ids


def kept(field: Field) -> dict[str, dict[str, int]]:
    """Each tenant's results, the oldest first, with their bytes."""
    found: dict[str, dict[str, int]] = {}
    for tenant in TENANTS:
        members = [member.split("|") for member in field.client.zrange(keys.kept(tenant), 0, -1)]
        if members:
            found[tenant] = {job_id: int(weight) for job_id, weight in members}
    return found


def test_a_flood_pushes_out_its_own_results(field: Field) -> None:
    """The newest 60 of a tenant that ends 300 jobs are kept, and all that others have, older ones too."""
    bounded(field, max_finished=100)
    others = {tenant: end(field, tenant, 20) for tenant in ("ann", "ben")}
    field.later(1000)
    flood: list[str] = []
    for _ in range(15):
        flood += end(field, "flood", 20)
        field.later(10)
        field.keep()
    expected = {**others, "flood": flood[-60:]}
    assert {tenant: set(ids) for tenant, ids in kept(field).items()} == {t: set(ids) for t, ids in expected.items()}
    assert all(field.view(job).state is JobState.CANCELLED for ids in others.values() for job in ids)
    assert not field.state(flood[0])


def test_a_flood_of_bytes_pushes_out_its_own_results(field: Field) -> None:
    """Few large results make room as many small ones do: whoever has most bytes loses the oldest."""
    bounded(field, max_finished_bytes=MOST_BYTES)
    small = end(field, "ann", 30)
    large: list[str] = []
    for _ in range(6):
        field.later(10)
        large += end(field, "flood", chars=300_000)
        field.keep()
    assert {tenant: set(ids) for tenant, ids in kept(field).items()} == {"ann": set(small), "flood": set(large[-3:])}


steps = st.tuples(st.sampled_from(TENANTS), st.integers(1, 20), st.sampled_from((10, 20_000, 90_000)))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(story=st.lists(st.lists(steps, min_size=1, max_size=4), max_size=6))
def test_nobody_within_an_equal_share_loses_a_result(jobs: Jobs, story: list[list[tuple[str, int, int]]]) -> None:
    """Whatever ends in whatever order: both bounds hold; a tenant loses its oldest and only those; one that has no more
    jobs and bytes than the bounds over the number of tenants loses nothing; and nothing goes without need."""
    jobs.client.flushall()
    field = bounded(Field(jobs), max_finished=MOST_JOBS, max_finished_bytes=MOST_BYTES)
    for ends in story:
        for tenant, count, chars in ends:
            end(field, tenant, count, chars)
        field.later(10)
        before = kept(field)
        field.keep()
        after = kept(field)
        count, weight = _sums(after)
        assert count <= MOST_JOBS
        assert weight <= MOST_BYTES
        lost: list[int] = []
        for tenant, had in before.items():
            gone = had.keys() - after.get(tenant, {}).keys()
            assert gone == set(list(had)[: len(gone)]), "a newer result went before an older one of the same tenant"
            is_within = len(had) * len(before) <= MOST_JOBS and sum(had.values()) * len(before) <= MOST_BYTES
            assert not (gone and is_within), f"{tenant} was within its share and lost {len(gone)} results"
            assert {bool(field.state(job)) for job in gone} <= {False}
            lost += [had[job] for job in gone]
        if lost:
            assert count + 1 > MOST_JOBS or weight + max(lost) > MOST_BYTES, "more went than had to"
        check(field)


def _sums(results: dict[str, dict[str, int]]) -> tuple[int, int]:
    weights = [weight for had in results.values() for weight in had.values()]
    return len(weights), sum(weights)


def test_no_call_drops_more_than_a_few(field: Field) -> None:
    """However many are too many or too old, a call drops 128, so that none of them takes long."""
    bounded(field, max_finished=1)
    end(field, "ann", MOST)
    end(field, "ben", MOST)
    field.keep()
    assert _sums(kept(field))[0] == MOST
    field.keep()
    assert _sums(kept(field))[0] == 1
    end(field, "ann", MOST)
    end(field, "ben", MOST)
    field.later(86_401_000)
    field.keep()
    assert _sums(kept(field))[0] == MOST + 1


def test_the_latest_ends_are_those_of_all_tenants(field: Field) -> None:
    """What is shown of late is in order of the ends, whoever's they are."""
    ended: list[str] = []
    for tenant in ("ann", "ben", "ann", "cleo", "ben", "ben"):
        ended += end(field, tenant)
        field.later(10)
    assert [job.id for job in glance(field.jobs, 4).recent] == ended[:1:-1]
    assert glance(field.jobs, 0).recent == []


# Versions before results were listed by tenant.


def listed_before(field: Field, *, with_tenant: bool = True) -> None:
    """List all results as such a version does, in one list for all."""
    for tenant in TENANTS:
        for member, ended in field.client.zrange(keys.kept(tenant), 0, -1, withscores=True):
            field.client.zadd(EARLIER, {f"{member}|{tenant}" if with_tenant else member: ended})
            field.client.incrby(f"{keys.PREFIX}finished_bytes", int(member.split("|")[1]))
        field.client.delete(keys.kept(tenant))
    for name in ("kept_oldest", "kept_newest", "kept_jobs", "kept_bytes", "kept_all"):
        field.client.delete(keys.PREFIX + name)


@pytest.mark.parametrize("with_tenant", [True, False])
def test_results_of_an_earlier_version_are_taken_over(field: Field, with_tenant: bool) -> None:
    """They keep their ends, count from then on, and go by age and share like all others, 64 a call; a version that
    still writes beside this one finds its results taken over too."""
    for tenant in ("ann", "flood"):
        end(field, tenant, 100)
        field.later(10)
    before = kept(field)
    ends = {tenant: field.client.zrange(keys.kept(tenant), 0, -1, withscores=True) for tenant in before}
    listed_before(field, with_tenant=with_tenant)
    check(field)
    field.keep()
    check(field)
    assert _sums(kept(field))[0] == MOST // 2
    for _ in range(3):
        field.keep()
    assert {tenant: field.client.zrange(keys.kept(tenant), 0, -1, withscores=True) for tenant in before} == ends
    assert not field.client.exists(EARLIER, f"{keys.PREFIX}finished_bytes")
    late = end(field, "ben", 2)
    listed_before(field, with_tenant=with_tenant)
    bounded(field, max_finished=150)
    for _ in range(4):
        field.keep()
    assert {tenant: len(ids) for tenant, ids in kept(field).items()} == {"ann": 74, "flood": 74, "ben": 2}
    assert kept(field)["ben"].keys() == set(late)


def test_an_earlier_versions_mention_of_what_is_gone_goes_by_its_age(field: Field) -> None:
    """A member whose job nobody knows any more, or that is none, stops no keeper."""
    now_ms = 1000 * field.client.time()[0]
    field.client.zadd(EARLIER, {"ghost|200": now_ms, "spirit|100|ann": now_ms, "what is this": now_ms})
    field.client.set(f"{keys.PREFIX}finished_bytes", 300)
    field.keep()
    assert not field.client.exists(EARLIER)
    field.later(86_401_000)
    field.keep()
    assert field.client.zcard(keys.KEPT_NEWEST) == 0


DEEDS: dict[str, Callable[[Field, str], Any]] = {
    "purge": lambda field, job: dead.purge(field.jobs, [job]),
    "revive": lambda field, job: dead.retry(field.jobs, [job]),
    "forget": lambda field, _: field.jobs.forget("ann", field.client.zrange(keys.jobs("ann"), 0, -1)),
}


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("is_earlier", [False, True])
def test_what_is_taken_away_by_hand_is_struck_off(field: Field, deed: str, is_earlier: bool) -> None:
    """A dead job that is purged or retried, and one that is forgotten, count no longer, whoever had listed them."""
    end(field, "ann", 3)
    [job] = field.submit(tenant="ann")
    hand = field.worker()
    for _ in range(3):
        field.run(hand, job)
        hand.release("lost", "engine_lost", [job])
    assert field.state(job) == "dead"
    if is_earlier:
        listed_before(field)
    DEEDS[deed](field, job)
    check(field)
    field.keep()
    assert _sums(kept(field))[0] == {"purge": 3, "revive": 3, "forget": 1}[deed]
