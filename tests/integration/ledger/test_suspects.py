"""A job with a strike is a suspect: it takes the blame alone, and few suspects are let in at a time."""

from __future__ import annotations

import itertools

from farm import keys
from farm.ledger.attempts import PROOF, Claim, Refusal
from tests.integration.ledger.farmhand import Field, Hand


def test_a_suspect_takes_the_blame_alone(field: Field) -> None:
    """When an engine dies with a suspect aboard that has not given a token, its neighbours are not struck."""
    suspect, *rest = field.submit(4)
    hand = field.worker(capacity=4)
    field.run(hand, suspect)
    hand.lose()
    field.run(hand, suspect)
    for job in rest:
        field.run(hand, job)
    hand.lose()
    assert [field.view(job).strikes for job in (suspect, *rest)] == [2, 0, 0, 0]


def test_a_suspect_that_gave_a_token_is_blamed_no_more_than_others(field: Field) -> None:
    """Once a suspect has emitted a token it is cleared, and the next loss strikes those without a token."""
    suspect, other = field.submit(2)
    hand = field.worker(capacity=4)
    field.run(hand, suspect)
    hand.lose()
    field.run(hand, suspect)
    hand.write(suspect, 1)
    field.run(hand, other)
    hand.lose()
    assert [field.view(job).strikes for job in (suspect, other)] == [0, 1]


def test_a_worker_holds_one_suspect_at_a_time(field: Field) -> None:
    """A second suspect waits until the first has given a token, or goes to another worker."""
    first, second = field.submit(2)
    hand, other = field.worker(), field.worker("mill")
    for job in (first, second):
        field.run(hand, job)
    hand.lose()
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
    other.lose()
    hand.write(first, 1)
    assert isinstance(field.run(hand, second).id, str)


def test_suspects_take_turns(field: Field) -> None:
    """Suspects that a worker has to refuse come back one after the other, a moment apart: an engine's death holds up
    those that had no token yet no longer than their first tokens take."""
    jobs = field.submit(8)
    hand = field.worker(capacity=8)
    for job in jobs:
        field.run(hand, job)
    hand.lose()
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
        hand.lose()
    field.run(hand, slow)
    hand.write(slow, 3)
    field.run(hand, other)
    hand.lose()
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
            hand.lose()
    hand.finish(struck)
    for losses in range(10):
        assert _proof(field, hand, slow) == (PROOF if losses == 9 else 0)
        hand.write(slow, 3)
        hand.lose()
    assert field.state(slow) == "dead"


def test_nobody_is_dead_for_what_another_may_have_done(field: Field) -> None:
    """The last strike counts only if every other job aboard had given 16 tokens; until then there are two."""
    suspect, other = field.submit(2, max_tokens=1000)
    hand = field.worker()
    for _ in range(2):
        field.run(hand, suspect)
        hand.lose()
    for gained in (0, PROOF - 1):
        field.run(hand, suspect)
        field.run(hand, other)
        if gained:
            hand.runs[other].generate(gained)
            hand.beat()
        hand.lose()
        assert (field.state(suspect), field.view(suspect).strikes) == ("queued", 2)
        field.client.hdel(keys.job(other), "strikes", "losses")
    field.run(hand, suspect)
    field.run(hand, other)
    hand.write(other, PROOF)
    hand.lose()
    assert (field.state(suspect), field.state(other)) == ("dead", "queued")


def test_who_kills_beside_a_suspect_is_noticed_too(field: Field) -> None:
    """A job that always dies with a suspect aboard gathers losses, and is a suspect itself after three."""
    suspect, sly = field.submit(2, max_tokens=1000)
    hand = field.worker()
    field.run(hand, suspect)
    hand.lose()
    for losses in (1, 2, 3):
        field.run(hand, suspect)
        field.run(hand, sly)
        hand.lose()
        assert field.client.hget(keys.job(sly), "losses") == str(losses)
    field.run(hand, suspect)
    field.dispatch()
    assert hand.claim(field.mail[sly]) == Refusal("suspect")
