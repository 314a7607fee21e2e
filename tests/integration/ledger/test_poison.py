"""Jobs that take their worker down end as dead, and nobody else does."""

from __future__ import annotations

from farm import keys
from farm.contracts import JobState
from tests.integration.ledger.farmhand import Field, Hand


def fill(field: Field, hand: Hand) -> None:
    """Let a worker claim what it has room for."""
    field.later(501)
    hand.beat()
    field.keep()
    field.dispatch()
    for message in list(field.mail.values()):
        if len(hand.runs) < hand.capacity and field.state(message.id) == "dispatched":
            hand.claim(field.mail.pop(message.id))


def test_three_losses_without_a_token_end_a_job(field: Field) -> None:
    """A job whose worker dies three times before a new token is dead, with the reasons in its history."""
    [job] = field.submit()
    hand = field.worker()
    for strikes in (1, 2):
        field.run(hand, job)
        assert hand.release("lost", "engine_lost") == [JobState.QUEUED]
        assert field.view(job).strikes == strikes
    field.run(hand, job)
    assert hand.release("lost", "engine_lost") == [JobState.DEAD]
    view = field.view(job)
    assert view.error is not None
    assert (view.error.code, view.error.retryable) == ("job_dead", False)
    assert [record.reason for record in view.history] == ["engine_lost"] * 3
    assert field.client.zrange(keys.DEAD, 0, -1) == [job]


def test_death_comes_by_lease_and_restart_as_well(field: Field) -> None:
    """It does not matter how a worker's death is noticed: a lease that ends and a restart strike like a lost engine."""
    [job] = field.submit()
    hand, other = field.worker(), field.worker("mill")
    field.run(hand, job)
    field.later(10_001)
    other.beat()
    field.keep()
    assert field.view(job).strikes == 1
    for strikes in (2, 3):
        hand = field.worker("barn")
        field.run(hand, job)
        field.worker("barn")
        assert field.view(job).strikes == strikes
    assert field.view(job).state is JobState.DEAD
    assert [record.reason for record in field.view(job).history] == ["lease_ended"] + ["worker_restarted"] * 2


def test_a_token_clears_all_strikes(field: Field) -> None:
    """A job that made progress starts from no strikes, however often its workers died before."""
    [job] = field.submit()
    hand = field.worker()
    for _ in range(2):
        field.run(hand, job)
        hand.lose()
    field.run(hand, job)
    hand.write(job, 1)
    assert field.view(job).strikes == 0
    hand.lose()
    assert (field.view(job).state, field.view(job).strikes) == (JobState.QUEUED, 0)


def test_ten_losses_in_a_row_with_little_between_end_a_job(field: Field) -> None:
    """A job that crashes its engine every 15 tokens dies at the tenth loss, although it always made progress."""
    [job] = field.submit(max_tokens=1000)
    hand = field.worker()
    for losses in range(1, 11):
        field.run(hand, job)
        hand.write(job, 15)
        [state] = hand.release("lost", "engine_lost")
        assert state is (JobState.DEAD if losses == 10 else JobState.QUEUED)
    assert field.view(job).strikes == 0
    assert "10 times in a row" in str(field.view(job).error)


def test_sixteen_tokens_clear_all_losses(field: Field) -> None:
    """A job that gets 16 tokens further between losses is never given up for them."""
    [job] = field.submit(max_tokens=1000)
    hand = field.worker()
    for _ in range(12):
        field.run(hand, job)
        hand.write(job, 16)
        assert hand.release("lost", "engine_lost") == [JobState.QUEUED]
    assert field.client.hget(keys.job(job), "losses") == "0"


def test_draining_and_retrying_strike_nobody(field: Field) -> None:
    """Deploys and retryable errors are nobody's fault."""
    [job] = field.submit()
    hand = field.worker()
    for kind in ("drain", "drain", "drain", "retry", "retry", "retry"):
        field.run(hand, job)
        hand.release(kind, kind)
    assert field.client.hmget(keys.job(job), "strikes", "losses") == [None, None]


def test_neighbours_of_poison_never_die(field: Field) -> None:
    """Thirty-one innocents share a worker with a job that kills it at prefill: it dies, and all of them finish."""
    poison, *innocents = field.submit(32)
    hand = field.worker(capacity=32)
    for _ in range(400):
        fill(field, hand)
        if poison in hand.runs:
            hand.lose()
        for job in list(hand.runs):
            hand.write(job, 4)
            if len(hand.runs[job].entries) >= 8:
                hand.finish(job)
        if not field.client.zcard(f"{keys.PREFIX}running") and field.client.zcard(keys.FINISHED) == 32:
            break
    assert field.state(poison) == "dead"
    assert {field.state(job) for job in innocents} == {"succeeded"}
    assert max(len(field.view(job).history) for job in innocents) <= 4


def test_neighbours_of_poison_that_kills_every_three_tokens_never_die(field: Field) -> None:
    """A job that kills its engine at every third token is dead in the end, and its neighbours finish."""
    poison, *innocents = field.submit(8, max_tokens=200)
    hand = field.worker(capacity=8)
    for _ in range(400):
        fill(field, hand)
        for job in hand.runs:
            hand.runs[job].generate(1)
        hand.beat()
        run = hand.runs.get(poison)
        if run and len(run.entries) % 3 == 0 and run.entries:
            hand.lose()
        for job in list(hand.runs):
            if len(hand.runs[job].entries) >= 40 and job != poison:
                hand.finish(job)
        if field.client.zcard(keys.FINISHED) == 8:
            break
    assert field.state(poison) == "dead"
    assert {field.state(job) for job in innocents} == {"succeeded"}
