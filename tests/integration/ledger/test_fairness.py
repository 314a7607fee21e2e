"""Order of dispatch: priority, then the tenant that had least, then age."""

from __future__ import annotations

from collections import Counter

import pytest

from farm import keys
from farm.ledger.jobs import Jobs
from farm.ledger.tenants import Tenants
from farm.ledger.upkeep import Upkeep
from farm.settings import load_settings
from tests.integration.ledger.farmhand import MODEL, Field

TOKENS = 100
COST = TOKENS + len("Once") // 4 + 1


def queue(field: Field, tenant: str, count: int, **more: object) -> list[str]:
    return field.submit(count, tenant=tenant, max_tokens=TOKENS, **more)


def one_by_one(field: Field, count: int) -> list[str]:
    """The tenants of the next jobs, with room for one at a time, each finished with all its tokens."""
    served: list[str] = []
    hand = field.worker("barn", capacity=1)
    for _ in range(count):
        hand.beat()
        field.dispatch()
        job = min(field.mail, key=lambda job: list(field.mail).index(job))
        field.run(hand, job)
        served.append(field.view(job).tenant)
        hand.finish(job, tokens=TOKENS)
    return served


def vtime(field: Field, tenant: str) -> float:
    return float(field.client.hget(f"{keys.PREFIX}vtime:{MODEL}", tenant) or 0)


@pytest.fixture
def narrow(field: Field) -> Field:
    """A farm without a margin, so that one slot is one job."""
    settings = load_settings(redis={"url": field.jobs.settings.redis.url}, keeper={"margin": 0})
    field.jobs = Jobs(settings, field.client)
    field.keeper = Upkeep(field.jobs)
    return field


def test_a_single_prompt_waits_for_one_dispatch_window_at_the_most(field: Field) -> None:
    """With 100,000 jobs of one tenant queued, another's single prompt is the first to go out once there is room."""
    queue(field, "ann", 100_000)
    hand = field.worker(capacity=8)
    window = field.dispatch()
    assert len(window) == 8 + 2
    for message in window[:8]:
        hand.claim(message)
    [prompt] = queue(field, "ben", 1)
    assert field.jobs.standings([prompt])[0].position == 2 + 1, "behind the messages that are out"
    assert field.dispatch() == []
    hand.finish(window[0].id, tokens=TOKENS)
    assert [message.id for message in field.dispatch()] == [prompt]
    field.client.flushall()  # what always holds is checked with fewer jobs elsewhere


@pytest.mark.parametrize("priority", ["normal", "high"])
def test_a_newcomer_gets_its_share_at_once(narrow: Field, priority: str) -> None:
    """A tenant that comes while another's pile is served goes first and then every second time."""
    field = narrow
    queue(field, "ann", 1_000, priority=priority)
    one_by_one(field, 10)
    queue(field, "ben", 5, priority=priority)
    served = one_by_one(field, 11)
    assert "ben" in served[:2]
    assert served.count("ben") == 5


def test_tenants_take_turns(narrow: Field) -> None:
    """Equal weights get equal shares, whoever came first and however much each has queued."""
    queue(narrow, "ann", 300)
    queue(narrow, "ben", 40)
    queue(narrow, "cleo", 40)
    assert Counter(one_by_one(narrow, 60)) == {"ann": 20, "ben": 20, "cleo": 20}


def test_a_tenant_gets_by_its_weight(narrow: Field) -> None:
    """A tenant of weight 3 gets three times the tokens of one with weight 1."""
    Tenants(narrow.jobs).change("ann", weight=3)
    queue(narrow, "ann", 100)
    queue(narrow, "ben", 100)
    assert Counter(one_by_one(narrow, 40)) == {"ann": 30, "ben": 10}


def test_shares_are_counted_in_tokens(narrow: Field) -> None:
    """A tenant of long jobs gets fewer of them: what is shared is work, not places in a line."""
    field = narrow
    field.submit(60, tenant="ann", max_tokens=4 * TOKENS)
    queue(field, "ben", 60)
    hand = field.worker("barn", capacity=1)
    done: Counter[str] = Counter()
    for _ in range(50):
        hand.beat()
        [message] = field.dispatch()
        hand.claim(message)
        view = field.view(message.id)
        done[view.tenant] += 1
        hand.finish(message.id, tokens=4 * TOKENS if view.tenant == "ann" else TOKENS)
    assert done == {"ann": 10, "ben": 40}


def test_idleness_earns_no_credit(narrow: Field) -> None:
    """A tenant that was away while another worked does not get the time back."""
    field = narrow
    queue(field, "ben", 1)
    one_by_one(field, 1)
    queue(field, "ann", 100)
    one_by_one(field, 40)
    queue(field, "ben", 50)
    assert Counter(one_by_one(field, 20)) == {"ann": 10, "ben": 10}


def test_an_idle_job_at_low_earns_no_credit(narrow: Field) -> None:
    """One job that waits at low priority is no way to save time up for normal."""
    field = narrow
    queue(field, "ben", 1, priority="low")
    queue(field, "ann", 100)
    one_by_one(field, 40)
    queue(field, "ben", 50)
    assert Counter(one_by_one(field, 20)) == {"ann": 10, "ben": 10}


def test_a_job_is_charged_once(field: Field) -> None:
    """However often a job is dispatched, its tenant pays for it once, and in the end for what it used."""
    [job] = queue(field, "ann", 1)
    hand = field.worker()
    for _ in range(3):
        field.run(hand, job)
        assert vtime(field, "ann") == COST
        hand.release("drain", "drain")
    field.run(hand, job)
    hand.finish(job, tokens=7)
    assert vtime(field, "ann") == 3 + 7


def test_a_job_that_never_ran_costs_nothing(field: Field) -> None:
    """A job cancelled before it ran gives its charge back."""
    queued, dispatched = queue(field, "ann", 2)
    field.worker(capacity=1)
    field.client.hset(f"{keys.PREFIX}worker:barn-1", "capacity", -1)
    field.dispatch()
    field.jobs.cancel([queued, dispatched])
    assert vtime(field, "ann") == 0


def test_urgent_jobs_go_first(narrow: Field) -> None:
    """high goes before normal, normal before low."""
    queue(narrow, "ann", 2, priority="low")
    queue(narrow, "ben", 2)
    queue(narrow, "cleo", 2, priority="high")
    assert one_by_one(narrow, 6) == ["cleo", "cleo", "ben", "ben", "ann", "ann"]


def test_age_decides_within_a_tenant(narrow: Field) -> None:
    """A tenant's jobs of one priority go out in the order in which they came, also after a release."""
    field = narrow
    jobs = queue(field, "ann", 5)
    hand = field.worker("barn", 1)
    field.run(hand, jobs[0])
    hand.release("drain", "drain")
    hand.capacity = 5
    hand.beat()
    assert [message.id for message in field.dispatch()] == jobs


def test_high_priority_takes_no_more_than_its_lead(narrow: Field) -> None:
    """A tenant that marks all its jobs high runs ahead by high_lead_tokens and then shares like everyone."""
    field = narrow
    queue(field, "ann", 300, priority="high")
    queue(field, "ben", 100)
    served = one_by_one(field, 260)
    lead = field.jobs.settings.limits.high_lead_tokens // (TOKENS + 3)
    assert set(served[:lead]) == {"ann"}
    assert abs(served[lead + 2 :].count("ann") - served[lead + 2 :].count("ben")) <= 2


def test_anothers_high_priority_pushes_no_newcomer_back(narrow: Field) -> None:
    """While one tenant runs ahead at high, those who come at normal start level with those who wait there."""
    field = narrow
    queue(field, "ben", 100)
    queue(field, "ann", 300, priority="high")
    one_by_one(field, 150)
    queue(field, "cleo", 100)
    field.jobs.cancel(list(field.client.zrange(keys.queue(MODEL, "high", "ann"), 0, -1)))
    assert Counter(one_by_one(field, 40)) == {"ben": 20, "cleo": 20}


def test_a_job_at_another_priority_costs_a_waiting_tenant_nothing(narrow: Field) -> None:
    """A tenant that waits at normal keeps its turn when it also sends a job at low."""
    field = narrow
    queue(field, "ben", 100)
    queue(field, "ann", 100)
    queue(field, "cleo", 300, priority="high")
    one_by_one(field, 150)
    queue(field, "ben", 1, priority="low")
    field.jobs.cancel(list(field.client.zrange(keys.queue(MODEL, "high", "cleo"), 0, -1)))
    assert Counter(one_by_one(field, 20)) == {"ben": 10, "ann": 10}


@pytest.mark.parametrize("served", [0, 8, 17])
def test_a_position_is_the_place_in_the_order_of_dispatch(narrow: Field, served: int) -> None:
    """What a job is told of its place is what then happens, with weights, priorities, a high one's lead and all."""
    field = narrow
    settings = {"redis": {"url": field.jobs.settings.redis.url}, "keeper": {"margin": 0}}
    field.jobs.settings = load_settings(**settings, limits={"high_lead_tokens": 3 * COST})
    Tenants(field.jobs).change("ann", weight=3)
    jobs = [*queue(field, "ben", 9), *queue(field, "ann", 9), *queue(field, "cleo", 9, priority="high")]
    jobs += [
        *queue(field, "ben", 4, priority="high"),
        *queue(field, "ann", 2, priority="low"),
        *queue(field, "dora", 5),
    ]
    field.submit(1, tenant="eve", max_tokens=2 * TOKENS + 3)
    one_by_one(field, served)
    told = {job: standing.position for job, standing in zip(jobs, field.jobs.standings(jobs), strict=True)}
    field.worker("barn", capacity=100)
    order = [message.id for message in field.dispatch()]
    places = {job: place for place, job in enumerate(order, 1)}
    assert [told[job] for job in order if job in told] == [places[job] for job in order if job in told]


def test_a_newcomer_is_told_where_it_will_stand(narrow: Field) -> None:
    """What is said before submitting holds after it, for those who wait already and for those who come anew."""
    field = narrow
    queue(field, "ann", 20)
    queue(field, "cleo", 3, priority="high")
    one_by_one(field, 9)
    queue(field, "ben", 4)
    for tenant, priority in (
        ("ben", "normal"),
        ("dora", "normal"),
        ("dora", "low"),
        ("ann", "high"),
        ("ann", "normal"),
    ):
        before = field.jobs.newcomer(MODEL, priority, tenant).position  # type: ignore[arg-type]
        [job] = queue(field, tenant, 1, priority=priority)
        assert field.jobs.standings([job])[0].position == before


def test_virtual_time_never_falls(narrow: Field) -> None:
    """Refunds and tenants that come and go never turn the clock back."""
    field, clocks = narrow, [0.0]
    for n in range(12):
        jobs = queue(field, f"tenant-{n % 3}", 3, priority=("high", "normal", "low")[n % 3])
        one_by_one(field, 2)
        field.jobs.cancel(jobs)
        clocks.append(float(field.client.get(f"{keys.PREFIX}vclock:{MODEL}") or 0))
    assert clocks == sorted(clocks)
    assert clocks[-1] > 0
