"""Places in line and estimated ends: measured, not guessed."""

from __future__ import annotations

import pickle

import pytest

from farm import keys
from farm.errors import DeadlineUnmeetable
from farm.exposition import LedgerCollector
from farm.ledger.gauges import read_gauges
from farm.ledger.glance import glance
from farm.ledger.overview import overview
from tests.integration.ledger.farmhand import MODEL, Field, Hand

TOKENS = 20
SECONDS = 2


def work(field: Field, hand: Hand, count: int = 3) -> None:
    """Have a worker run jobs of 20 tokens, 2 seconds each by the server's clock."""
    for job in field.submit(count):
        field.run(hand, job)
        field.later(SECONDS * 1000)
        hand.beat()
        hand.finish(job, TOKENS)


def test_nothing_is_estimated_before_it_was_measured(field: Field) -> None:
    """Without a live worker, or before some jobs ended, there is a position and no estimate."""
    job = field.submit(2)[1]
    assert field.jobs.view(job, with_position=True).position == 2
    assert field.jobs.view(job, with_position=True).eta_s is None
    hand = field.worker()
    assert field.jobs.newcomer(MODEL, "normal", "ann").eta_s(0, 64) is None
    work(field, hand)
    assert field.jobs.newcomer(MODEL, "normal", "ann").eta_s(0, 64) is not None
    field.later(10_000)
    assert field.jobs.newcomer(MODEL, "normal", "ann").eta_s(0, 64) is None, "nobody works any more"


def test_an_estimate_follows_from_measured_tokens(field: Field) -> None:
    """So many rounds of jobs as long as those of late, at the pace of late; and the job's own time."""
    hand = field.worker(capacity=2)
    work(field, hand)
    jobs = field.submit(6, max_tokens=TOKENS)
    standings = field.jobs.standings(jobs)
    assert [standing.position for standing in standings] == [1, 2, 3, 4, 5, 6]
    assert standings[0].pace.tokens_per_job == pytest.approx(TOKENS, rel=0.01)
    assert standings[0].pace.tokens_per_s == pytest.approx(TOKENS / SECONDS, rel=0.2)
    etas = [standing.eta_s(0, TOKENS) for standing in standings]
    # Two slots are free: two jobs go at once, and every further one waits half a round longer.
    assert etas == pytest.approx([2, 2, 3, 4, 5, 6], rel=0.2)
    assert field.jobs.view(jobs[5], with_position=True).eta_s == pytest.approx(6, rel=0.2)


def shown(field: Field) -> tuple[int, int, float | None]:
    """Jobs that wait, slots, and when the queue is empty: the same wherever it is shown."""
    [load] = [load for load in overview(field.jobs).models if load.model == MODEL]
    [gauge] = [model for model in read_gauges(field.jobs).models if model.name == MODEL]
    [top] = [model for model in glance(field.jobs).farm.models if model.model == MODEL]
    scraped = {
        sample.name: sample.value
        for family in LedgerCollector(field.jobs).collect()
        for sample in family.samples
        if sample.name == "farm_queue_eta_seconds" and sample.labels["model"] == MODEL
    }
    assert (load.waiting, load.slots, load.eta_s) == (top.waiting, top.slots, top.eta_s)
    assert (load.waiting, load.slots, load.eta_s) == (sum(gauge.depth.values()), gauge.slots, gauge.eta_s)
    assert scraped.get("farm_queue_eta_seconds") == load.eta_s
    return load.waiting, load.slots, load.eta_s


def test_when_a_queue_is_empty_is_one_estimate(field: Field) -> None:
    """farm status, farm top and the metrics say the same: 0 with nothing waiting, and nothing while nobody can know."""
    hand = field.worker(capacity=2)
    assert shown(field) == (0, 2, 0.0)
    work(field, hand, 2)
    delayed, *others = field.submit(4)
    assert shown(field) == (4, 2, None), "two jobs are too few to tell from"
    field.run(hand, delayed)
    hand.release("retry", "busy", [delayed], wait_s=500)
    field.jobs.cancel([field.submit()[0]])
    assert shown(field)[0] == 4
    for job in others[:2]:
        field.run(hand, job)
        field.later(SECONDS * 1000)
        hand.beat()
        hand.finish(job, TOKENS)
    waiting, slots, eta_s = shown(field)
    assert (waiting, slots) == (2, 2)
    assert eta_s == pytest.approx(waiting * SECONDS / slots, rel=0.6)
    field.later(60_000)
    assert shown(field) == (2, 0, None), "nobody works any more"


def test_an_estimate_knows_how_much_a_job_asks_for(field: Field) -> None:
    """A short job ends before the usual one would; one that must go on to its end takes as long as that takes."""
    work(field, field.worker())
    at = field.jobs.newcomer(MODEL, "normal", "ann")
    assert at.position == 1
    assert at.eta_s(0, TOKENS // 2) == pytest.approx(SECONDS / 2, rel=0.2)
    assert at.eta_s(10 * TOKENS, 10 * TOKENS) == pytest.approx(10 * SECONDS, rel=0.2)
    job = field.submit(max_tokens=10 * TOKENS, ignore_eos=True)[0]
    assert field.jobs.view(job, with_position=True).eta_s == pytest.approx(10 * SECONDS, rel=0.2)


def test_a_newcomer_stands_where_it_will_be_put(field: Field) -> None:
    """What is said before submitting is what is true after it, in a line of several tenants and priorities."""
    field.submit(4, tenant="ann")
    field.submit(2, tenant="ben")
    field.submit(3, tenant="cleo", priority="high")
    for tenant, priority in (("ann", "normal"), ("ben", "normal"), ("dora", "low"), ("ben", "high")):
        before = field.jobs.newcomer(MODEL, priority, tenant).position  # type: ignore[arg-type]
        job = field.submit(1, tenant=tenant, priority=priority)[0]
        assert field.jobs.standings([job])[0].position == before


def test_a_job_that_does_not_wait_has_no_place(field: Field) -> None:
    """Running, ended and unknown jobs have position 0, and no estimate."""
    hand = field.worker()
    work(field, hand)
    running, ended = field.submit(2)
    field.run(hand, running)
    field.jobs.cancel([ended])
    standings = field.jobs.standings([running, ended, "nobody"])
    assert [standing.position for standing in standings] == [0, 0, 0]
    assert {standing.eta_s(0, 8) for standing in standings} == {None}


def test_a_hopeless_deadline_is_refused_with_the_estimate(field: Field) -> None:
    """A job that would take more than twice its deadline is not accepted; one that may just make it is."""
    hand = field.worker(capacity=1)
    work(field, hand, 12)
    field.submit(50, max_tokens=TOKENS)  # 100 s of work
    before = field.dump()
    with pytest.raises(DeadlineUnmeetable, match=r"would take about 10\d s, far more than 45") as error:
        field.submit(deadline_s=45)
    assert (error.value.http_status, error.value.retryable) == (422, False)
    assert error.value.eta_s == pytest.approx(102, rel=0.05)
    assert error.value.deadline_s == 45
    assert field.dump() == before
    field.submit(deadline_s=55)
    field.submit(deadline_s=45, priority="high")
    again = pickle.loads(pickle.dumps(error.value))  # noqa: S301
    assert (str(again), again.eta_s) == (str(error.value), error.value.eta_s)


def test_a_list_waits_for_itself(field: Field) -> None:
    """The last of many jobs with a deadline has those before it to wait for; one that is too late refuses them all."""
    work(field, field.worker(capacity=1), 12)
    before = field.dump()
    with pytest.raises(DeadlineUnmeetable):
        field.submit(30, deadline_s=10)
    assert field.dump() == before
    assert len(field.submit(5, deadline_s=10)) == 5


def test_a_job_that_is_there_is_not_refused(field: Field) -> None:
    """A repetition of a submission is answered, however hopeless its deadline has become."""
    work(field, field.worker(capacity=1), 12)
    placed = field.place(job_id="mine", deadline_s=10)
    field.jobs.submit([placed])
    field.submit(50, priority="high")
    assert field.jobs.submit([placed]) == [False]


@pytest.mark.parametrize("why", ["few jobs", "long ago", "nobody works"])
def test_a_deadline_is_not_refused_on_a_guess(field: Field, why: str) -> None:
    """Too few jobs, an old measurement or no live worker: then nothing is known, and the job is accepted."""
    hand = field.worker(capacity=1)
    work(field, hand, 4 if why == "few jobs" else 12)
    if why == "long ago":
        field.client.hincrby(keys.rate(MODEL), "at", -61_000)
    if why == "nobody works":
        field.later(10_000)
    field.submit(50)
    assert field.submit(deadline_s=1)
