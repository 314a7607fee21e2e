"""One end for each job: the first stands, deadlines end it anywhere, retries end, and its history and place say so."""

from __future__ import annotations

import pytest

from farm import keys
from farm.contracts import JobState
from farm.ledger.attempts import Kept, Refusal
from tests.integration.ledger.farmhand import Field, failed, succeeded

LEASE_OVER = 10_001


@pytest.mark.parametrize("is_out_again", [False, True])
def test_work_done_in_an_outage_counts_while_nobody_else_has_claimed(field: Field, is_out_again: bool) -> None:
    """A worker cut off for longer than its lease still hands in its result, even with the next message on its way."""
    [job] = field.submit()
    hand, other = field.worker(), field.worker("mill")
    run = field.run(hand, job)
    field.later(LEASE_OVER)
    other.beat()
    field.keep()
    assert field.state(job) == "queued"
    messages = field.dispatch() if is_out_again else []
    run.generate(3)
    assert hand.attempts.finish(run.advance(), succeeded()) is None
    assert field.view(job).token_ids == [0, 1, 2]
    for message in messages:
        assert other.claim(message) == Refusal("ended", JobState.SUCCEEDED)


def test_a_finish_sent_again_gets_the_same_answer(field: Field) -> None:
    """The outcome is written once; its sender may ask as often as it needs to, and another outcome changes nothing."""
    [job] = field.submit()
    hand = field.worker()
    run = field.run(hand, job)
    run.generate(2)
    assert hand.attempts.finish(run.advance(), succeeded()) is None
    before = field.read(keys.job(job))
    assert hand.attempts.finish(run.advance(), succeeded()) is None
    assert hand.attempts.finish(run.advance(), failed()) is None
    assert field.read(keys.job(job)) == before


def test_the_first_end_stands(field: Field) -> None:
    """Of cancel, expiry and finish the first wins, and the others are told what the job is."""
    first, second = field.submit(2, deadline_s=60)
    hand = field.worker()
    runs = {job: field.run(hand, job) for job in (first, second)}
    assert field.jobs.cancel([first]) == [JobState.CANCELLED]
    assert hand.attempts.finish(runs[first].advance(), succeeded()) is JobState.CANCELLED
    assert hand.beat()[first] == Kept("lost", 0, JobState.CANCELLED), "the worker must hear of it at its next beat"
    hand.finish(second)
    assert field.jobs.cancel([second, "nobody"]) == [JobState.SUCCEEDED, None]
    field.later(61_000)
    field.keep()
    assert [field.state(job) for job in (first, second)] == ["cancelled", "succeeded"]


def test_a_deadline_ends_a_job_wherever_it_is(field: Field) -> None:
    """Queued, waiting for a retry, dispatched or running: past its deadline a job expires with its partial text."""
    running, dispatched = field.submit(2, deadline_s=20)
    hand = field.worker(capacity=1)
    field.run(hand, running)
    hand.write(running, 2)
    message = field.mail[dispatched]
    [queued] = field.submit(deadline_s=20)
    field.later(20_001)
    assert hand.claim(message) == Refusal("ended", JobState.EXPIRED)
    assert field.keep().expired == 2
    assert {field.state(job) for job in (running, dispatched, queued)} == {"expired"}
    assert field.view(running).token_ids == [0, 1]
    assert field.view(running).finish_reason == "expired"
    assert field.client.zcard(f"{keys.PREFIX}deadlines") == 0


def test_the_least_deadline_is_a_deadline(field: Field) -> None:
    """A deadline under a millisecond is not taken for none."""
    [job] = field.submit(deadline_s=0.0001)
    field.later(2)
    field.keep()
    assert field.state(job) == "expired"


def test_a_release_twice_in_one_call_counts_once(field: Field) -> None:
    """A job named twice in a release goes back once."""
    [job] = field.submit()
    hand = field.worker()
    run = field.run(hand, job)
    pair = (job, run.nonce)
    assert hand.attempts.release([pair, pair], "drain", "drain") == [JobState.QUEUED] * 2


def test_retries_end(field: Field) -> None:
    """A retryable error is tried again max_retries times, each after its wait; then the job fails with that error."""
    [job] = field.submit()
    hand = field.worker()
    most = field.jobs.settings.keeper.max_retries
    for _ in range(most):
        field.run(hand, job)
        assert hand.release("retry", "busy", wait_s=0.5) == [JobState.QUEUED]
        assert field.dispatch() == []
    field.run(hand, job)
    assert hand.release("retry", "busy", wait_s=0.5, error=failed().error) == [JobState.FAILED]
    view = field.view(job)
    assert view.error is not None
    assert view.error.code == "broken"
    assert view.attempt == most + 1
    assert view.strikes == 0


def test_the_history_keeps_the_latest_twenty_attempts(field: Field) -> None:
    """However often a job moves, its history stays short."""
    [job] = field.submit()
    hand = field.worker()
    for _ in range(25):
        field.run(hand, job)
        hand.release("drain", "drain")
    assert [record.attempt for record in field.view(job).history] == list(range(6, 26))
