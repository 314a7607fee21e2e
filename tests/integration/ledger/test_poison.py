"""Jobs that take their worker down end as dead, and nobody else does."""

from __future__ import annotations

import itertools

from farm import keys
from farm.contracts import JobState
from farm.ledger.attempts import PROOF, Claim, Refusal
from tests.integration.ledger.farmhand import Field, Hand


def lose(field: Field, hand: Hand) -> None:
    """The engine dies with all that is aboard."""
    hand.release("lost", "engine_lost")


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
        lose(field, hand)
    field.run(hand, job)
    hand.write(job, 1)
    assert field.view(job).strikes == 0
    lose(field, hand)
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


def test_a_suspect_takes_the_blame_alone(field: Field) -> None:
    """When an engine dies with a suspect aboard that has not given a token, its neighbours are not struck."""
    suspect, *rest = field.submit(4)
    hand = field.worker(capacity=4)
    field.run(hand, suspect)
    lose(field, hand)
    field.run(hand, suspect)
    for job in rest:
        field.run(hand, job)
    lose(field, hand)
    assert [field.view(job).strikes for job in (suspect, *rest)] == [2, 0, 0, 0]


def test_a_suspect_that_gave_a_token_is_blamed_no_more_than_others(field: Field) -> None:
    """Once a suspect has emitted a token it is cleared, and the next loss strikes those without a token."""
    suspect, other = field.submit(2)
    hand = field.worker(capacity=4)
    field.run(hand, suspect)
    lose(field, hand)
    field.run(hand, suspect)
    hand.write(suspect, 1)
    field.run(hand, other)
    lose(field, hand)
    assert [field.view(job).strikes for job in (suspect, other)] == [0, 1]


def test_a_worker_holds_one_suspect_at_a_time(field: Field) -> None:
    """A second suspect waits until the first has given a token, or goes to another worker."""
    first, second = field.submit(2)
    hand, other = field.worker(), field.worker("mill")
    for job in (first, second):
        field.run(hand, job)
    lose(field, hand)
    field.run(hand, first)
    field.dispatch()
    message = field.mail[second]
    assert hand.claim(message) == Refusal("suspect")
    assert field.state(second) == "queued"
    assert second not in {m.id for m in field.dispatch()}, "it must wait before it is tried again"
    field.later(501)
    other.beat()
    hand.beat()
    field.keep()
    field.dispatch()
    assert isinstance(other.claim(field.mail[second]), Claim)
    lose(field, other)
    hand.write(first, 1)
    assert isinstance(field.run(hand, second).id, str)


def test_suspects_take_turns(field: Field) -> None:
    """Suspects that a worker has to refuse come back one after the other, a moment apart: an engine's death holds up
    those that had no token yet no longer than their first tokens take."""
    jobs = field.submit(8)
    hand = field.worker(capacity=8)
    for job in jobs:
        field.run(hand, job)
    lose(field, hand)
    field.run(hand, jobs[0])
    hand.beat()
    field.dispatch()
    for job in jobs[1:]:
        assert hand.claim(field.mail.pop(job)) == Refusal("suspect")
    turns = [float(field.client.hget(keys.job(job), "not_before") or 0) for job in jobs[1:]]
    waits = [later - sooner for sooner, later in itertools.pairwise(turns)]
    assert all(0 < wait <= 200 for wait in waits), waits
    for cleared, job in itertools.pairwise(jobs):
        hand.write(cleared, 1)
        field.later(waits[0] + 1)
        hand.beat()
        field.keep()
        field.dispatch()
        assert isinstance(hand.claim(field.mail.pop(job)), Claim), "its turn has come"


def test_a_job_with_three_losses_is_a_suspect_until_it_gave_sixteen_tokens(field: Field) -> None:
    """A job that crashes every few tokens is isolated too, though each attempt gave some."""
    slow, other = field.submit(2)
    hand = field.worker()
    for _ in range(3):
        field.run(hand, slow)
        hand.write(slow, 3)
        lose(field, hand)
    field.run(hand, slow)
    hand.write(slow, 3)
    field.run(hand, other)
    lose(field, hand)
    assert field.view(other).strikes == 0
    assert field.client.hget(keys.job(slow), "losses") == "4"


def _proof(field: Field, hand: Hand, job: str) -> int:
    """How many new tokens a claim says that the job must give by itself."""
    field.dispatch()
    claim = hand.claim(field.mail.pop(job))
    assert isinstance(claim, Claim)
    return claim.proof


def test_the_claim_says_that_the_next_loss_decides(field: Field) -> None:
    """After two strikes a job must give a token before others are let in, after nine losses sixteen."""
    struck, slow = field.submit(2, max_tokens=1000)
    hand = field.worker()
    for strikes in range(3):
        assert _proof(field, hand, struck) == (1 if strikes == 2 else 0)
        if strikes < 2:
            lose(field, hand)
    hand.finish(struck)
    for losses in range(10):
        assert _proof(field, hand, slow) == (PROOF if losses == 9 else 0)
        hand.write(slow, 3)
        lose(field, hand)
    assert field.state(slow) == "dead"


def test_nobody_is_dead_for_what_another_may_have_done(field: Field) -> None:
    """The last strike counts only if every other job aboard had given 16 tokens; until then there are two."""
    suspect, other = field.submit(2, max_tokens=1000)
    hand = field.worker()
    for _ in range(2):
        field.run(hand, suspect)
        lose(field, hand)
    for gained in (0, PROOF - 1):
        field.run(hand, suspect)
        field.run(hand, other)
        if gained:
            hand.runs[other].generate(gained)
            hand.beat()
        lose(field, hand)
        assert (field.state(suspect), field.view(suspect).strikes) == ("queued", 2)
        field.client.hdel(keys.job(other), "strikes", "losses")
    field.run(hand, suspect)
    field.run(hand, other)
    hand.write(other, PROOF)
    lose(field, hand)
    assert (field.state(suspect), field.state(other)) == ("dead", "queued")


def test_who_kills_beside_a_suspect_is_noticed_too(field: Field) -> None:
    """A job that always dies with a suspect aboard gathers losses, and is a suspect itself after three."""
    suspect, sly = field.submit(2, max_tokens=1000)
    hand = field.worker()
    field.run(hand, suspect)
    lose(field, hand)
    for losses in (1, 2, 3):
        field.run(hand, suspect)
        field.run(hand, sly)
        lose(field, hand)
        assert field.client.hget(keys.job(sly), "losses") == str(losses)
    field.run(hand, suspect)
    field.dispatch()
    assert hand.claim(field.mail[sly]) == Refusal("suspect")


def test_neighbours_of_poison_never_die(field: Field) -> None:
    """Thirty-one innocents share a worker with a job that kills it at prefill: it dies, and all of them finish."""
    poison, *innocents = field.submit(32)
    hand = field.worker(capacity=32)
    for _ in range(400):
        fill(field, hand)
        if poison in hand.runs:
            lose(field, hand)
        for job in list(hand.runs):
            hand.write(job, 4)
            if len(hand.runs[job].entries) >= 8:
                hand.finish(job)
        if not field.client.zcard(f"{keys.PREFIX}running") and field.client.zcard(keys.kept("default")) == 32:
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
            lose(field, hand)
        for job in list(hand.runs):
            if len(hand.runs[job].entries) >= 40 and job != poison:
                hand.finish(job)
        if field.client.zcard(keys.kept("default")) == 8:
            break
    assert field.state(poison) == "dead"
    assert {field.state(job) for job in innocents} == {"succeeded"}
