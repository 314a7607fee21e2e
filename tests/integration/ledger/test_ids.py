"""An id names one job as long as it is kept, and another one after that."""

from __future__ import annotations

import pytest

from farm import keys
from farm.contracts import JobState, Request
from farm.errors import IdempotencyConflict
from farm.ledger.attempts import Claim
from tests.integration.ledger.farmhand import Field


def test_an_idempotency_key_names_one_job(field: Field) -> None:
    """The same key and request is the same job; with another request it is refused; for another tenant it is free."""
    jobs = field.jobs
    placed = [
        jobs.place(Request(prompt=text), tenant=who, idempotency_key="order-7")
        for text, who in (("a", "ann"), ("b", "ann"), ("a", "ben"))
    ]
    assert jobs.submit([placed[0], placed[2]]) == [True, True]
    assert jobs.submit([placed[0], placed[0]]) == [False, False]
    with pytest.raises(IdempotencyConflict, match="another request"):
        jobs.submit([placed[1]])
    assert jobs.view(placed[0].id).token_ids == []
    assert field.client.hget(keys.TOTALS, "submitted") == "2"


def test_a_conflict_stops_nobody_else(field: Field) -> None:
    """In one call, a job whose id is taken is refused and all others are accepted once, also when they come twice."""
    jobs = field.jobs
    taken = field.place("a", job_id="taken")
    jobs.submit([taken])
    fresh = field.place("c")
    with pytest.raises(IdempotencyConflict):
        jobs.submit([fresh, field.place("b", job_id="taken"), fresh])
    assert field.state(fresh.id) == "queued"
    assert jobs.submit([fresh]) == [False]


def test_a_key_is_free_again_after_the_retention(field: Field) -> None:
    """Id and idempotency key end together: afterwards the same key makes a new job."""
    [job] = field.submit(job_id="order-7")
    hand = field.worker()
    field.run(hand, job)
    hand.finish(job)
    field.later(86_400_001)
    field.keep()
    assert field.jobs.submit([field.place(job_id="order-7")]) == [True]
    assert field.view(job).state is JobState.QUEUED


def test_an_id_used_again_before_the_trimming_keeps_its_new_job(field: Field) -> None:
    """A farm that slept through a retention does not trim the new job under an old job's id."""
    [job] = field.submit(job_id="order-7")
    hand = field.worker()
    field.run(hand, job)
    hand.finish(job)
    field.later(86_400_000 + 3_600_001)
    assert field.client.exists(keys.job(job)) == 0, "the TTL has not passed"
    assert field.jobs.submit([field.place(job_id="order-7")]) == [True]
    field.keep()
    assert field.state(job) == "queued"
    hand = field.worker()
    field.run(hand, job)
    hand.finish(job, tokens=1)
    field.keep()
    assert field.view(job).token_ids == [0]


def test_a_revived_job_is_as_old_as_its_second_life(field: Field) -> None:
    """The time that a job lay dead is no part of its latency."""
    [job] = field.submit()
    hand = field.worker()
    for _ in range(3):
        field.run(hand, job)
        hand.release("lost", "engine_lost", [job])
    field.later(3_600_000)
    hand.beat()
    assert field.jobs.scripts.call("revive", "token", 0, job) == ["revived"]
    [message] = field.dispatch()
    claim = hand.attempts.claim(message.id, message.number, "n")
    assert isinstance(claim, Claim)
    assert claim.age_s < 3_000


def test_a_dead_job_is_not_forgotten(field: Field) -> None:
    """Who is done with a batch's jobs leaves the dead for somebody to look at."""
    done, poison = field.submit(2)
    hand = field.worker()
    for _ in range(3):
        field.run(hand, poison)
        hand.release("lost", "engine_lost", [poison])
    field.jobs.cancel([done])
    assert field.jobs.forget("default", [done, poison]) == 1
    assert (field.state(poison), field.client.exists(keys.job(done))) == ("dead", 0)
