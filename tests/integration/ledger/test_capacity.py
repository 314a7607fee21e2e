"""Who gets jobs and how many: capacity, models, draining, restarts."""

from __future__ import annotations

from collections import Counter

from farm import keys
from farm.contracts import JobState
from farm.ledger.attempts import Kept, Refusal
from tests.integration.ledger.farmhand import MODEL, Field, Hand

MARGIN = 2


def sent(field: Field) -> int:
    return len(field.dispatch())


def claim_all(field: Field, hands: list[Hand]) -> None:
    """Hand what is dispatched to whoever has a free slot."""
    for job in list(field.mail):
        free = [hand for hand in hands if len(hand.runs) < hand.capacity]
        if free and field.state(job) == "dispatched":
            free[0].claim(field.mail.pop(job))


def test_no_more_is_sent_than_live_workers_have_room_for(field: Field) -> None:
    """Free slots of live workers plus a margin each: never more messages are out, however often a keeper looks."""
    field.submit(50)
    hands = [field.worker("barn", 4), field.worker("mill", 8)]
    assert sent(field) == 12 + 2 * MARGIN
    assert sent(field) == 0
    claim_all(field, hands)
    assert sent(field) == 0, "the margin is still out"
    first = next(iter(hands[0].runs))
    hands[0].finish(first)
    assert sent(field) == 1, "one slot became free"


def test_a_full_workers_surplus_is_no_room_for_another(field: Field) -> None:
    """A worker that runs more than its capacity, because it shrank, takes nothing away from the others' room."""
    field.submit(30)
    hands = [field.worker("barn", 8), field.worker("mill", 2)]
    sent(field)
    claim_all(field, hands)
    hands[0].capacity = 1
    hands[0].beat()
    for job in list(hands[1].runs):
        hands[1].finish(job)
    assert sent(field) == 2


def test_nothing_is_sent_for_a_worker_without_room(field: Field) -> None:
    """A worker that can take nothing gets no margin either: its messages would wait for it."""
    field.submit(10)
    broken = field.worker("barn", 4)
    broken.capacity = 0
    broken.beat()
    assert sent(field) == 0
    field.worker("mill", 1)
    assert sent(field) == 1 + MARGIN


def test_each_model_has_its_own_room(field: Field) -> None:
    """A queue of one model is served by the workers of that model only."""
    field.submit(10)
    field.submit(10, model="bigscience/bloom-560m")
    field.submit(10, model="nobody/serves-this")
    field.worker("barn", 1)
    field.worker("mill", 3, model="bloom-560m")
    models = Counter(message.model for message in field.dispatch())
    assert models == {MODEL: 1 + MARGIN, "bloom-560m": 3 + MARGIN}


def test_silent_and_draining_workers_and_those_without_an_engine_count_for_nothing(field: Field) -> None:
    """Jobs are only sent for workers that beat lately, do not drain and have a model."""
    field.submit(10)
    field.worker("silent", 4)
    field.later(1501)
    field.worker("draining", 4).beat(draining=True)
    field.worker("system", 0, model="", role="system")
    assert sent(field) == 0
    field.worker("mill", 1)
    assert sent(field) == 1 + MARGIN


def test_a_draining_worker_takes_no_job(field: Field) -> None:
    """From its first drain write on a worker gets neither new jobs nor its own released ones back."""
    field.submit(2)
    hand = field.worker(capacity=2)
    messages = field.dispatch()
    hand.claim(messages[0])
    hand.release("drain", "drain", draining=True)
    assert hand.claim(messages[1]) == Refusal("draining")
    assert [field.state(message.id) for message in messages] == ["queued", "queued"]
    assert sent(field) == 0
    other = field.worker("mill")
    assert [message.id for message in field.dispatch()] == [message.id for message in messages]
    assert other.claim(field.mail[messages[0].id]) != Refusal("stale")


def test_a_worker_leaves_when_it_holds_nothing(field: Field) -> None:
    """A worker that handed everything back is forgotten at once; one that still holds jobs is not."""
    [job] = field.submit()
    hand = field.worker()
    field.run(hand, job)
    assert not hand.attempts.leave()
    hand.release("drain", "drain", draining=True)
    assert hand.attempts.leave()
    assert hand.attempts.leave()
    assert field.client.zcard(keys.WORKERS) == 0
    assert field.client.hgetall(f"{keys.PREFIX}names") == {}


def test_a_restarted_worker_frees_its_former_jobs_at_once(field: Field) -> None:
    """A host that comes back is not charged with its former life's jobs; they go to whoever is free, without a wait."""
    jobs = field.submit(2)
    old = field.worker("barn", 2)
    for job in jobs:
        field.run(old, job)
        old.write(job, 1)
    new = field.worker("barn", 2)
    assert [field.state(job) for job in jobs] == ["queued", "queued"]
    assert field.client.exists(keys.held(old.attempts.worker)) == 0
    assert sent(field) == 2
    assert old.beat() == dict.fromkeys(jobs, Kept("lost", 1, JobState.DISPATCHED))
    assert new.attempts.register("barn", MODEL, 2, "model", None) == 0, "a repetition takes nothing"


def test_two_workers_of_one_name_live_side_by_side(field: Field) -> None:
    """A name given twice by mistake costs the first worker its jobs once; the two do not rob each other for ever."""
    first = field.worker("barn", 1)
    second = field.worker("barn", 1)
    jobs = field.submit(2)
    assert first.attempts.progress([], 1)[0] is False
    for _ in range(3):
        assert first.attempts.register("barn", MODEL, 1, "model", None) == 0
    for hand, job in zip((first, second), jobs, strict=True):
        field.run(hand, job)
    for _ in range(3):
        for hand in (first, second):
            is_known, _ = hand.attempts.progress([run.advance() for run in hand.runs.values()], 1)
            if not is_known:
                hand.attempts.register("barn", MODEL, 1, "model", None)
    assert [first.finish(jobs[0]), second.finish(jobs[1])] == [None, None]
    assert [field.view(job).attempt for job in jobs] == [1, 1]
    third = field.worker("barn", 1)
    assert second.attempts.progress([], 1)[0] is False, "the latest of the name is its successor"
    assert third.attempts.leave()
    assert first.attempts.register("barn", MODEL, 1, "model", None) == 0


def test_the_keeper_is_woken_when_there_is_something_to_do(field: Field) -> None:
    """Submitting and handing back wake the keeper, ending does while a job waits; waking twice is one wake-up."""
    wake = keys.WAKE

    def woken() -> bool:
        return field.client.lpop(wake) is not None and field.client.lpop(wake) is None

    jobs = field.submit(2)
    jobs += field.submit()
    assert woken()
    hand = field.worker()
    assert woken()
    for job in jobs:
        field.run(hand, job)
    hand.finish(jobs[0])
    assert not woken(), "nobody waits for the slot"
    field.submit()
    assert woken()
    hand.finish(jobs[1])
    assert woken()
    hand.release("drain", "drain")
    assert woken()


def test_a_position_tells_how_many_go_first(field: Field) -> None:
    """Position 1 goes next; more urgent jobs go before, and tenants take turns."""
    low = field.submit(1, priority="low")[0]
    mine = field.submit(3, tenant="ann")
    field.submit(50, tenant="ben")
    field.submit(2, tenant="cleo", priority="high")
    positions = [field.jobs.view(job, with_position=True).position for job in (*mine, low)]
    assert positions == [2 + 0 + 1, 2 + 2 + 1, 2 + 4 + 1, 2 + 53 + 1]
    field.jobs.cancel(mine[:1])
    assert field.jobs.view(mine[0], with_position=True).position is None
