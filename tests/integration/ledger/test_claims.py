"""One owner at a time: claims, fences, tokens and ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from farm import keys
from farm.contracts import JobState
from farm.ledger.attempts import Claim, Kept, Refusal
from farm.ledger.upkeep import Dispatch
from tests.integration.ledger.farmhand import Field, failed, indices, succeeded, token

LEASE_OVER = 10_001


def stored(field: Field, job_id: str) -> list[str]:
    return list(field.client.lrange(keys.out(job_id), 0, -1))


def test_tokens_sent_again_are_skipped(field: Field) -> None:
    """A flush whose answer was lost is sent again, overlapping or longer, and no token is stored twice."""
    [job] = field.submit()
    hand = field.worker()
    run = field.run(hand, job)
    run.generate(5)
    for start, upto in ((0, 5), (0, 5), (3, 5)):
        _, words = hand.attempts.progress([run.advance(start, upto)], 2)
        assert words == [Kept("ok", 5)]
    run.generate(2)
    _, words = hand.attempts.progress([run.advance(1)], 2)
    assert words == [Kept("ok", 7)]
    assert stored(field, job) == run.entries


def test_a_gap_is_answered_with_the_index_to_go_on_from(field: Field) -> None:
    """Tokens that would leave a hole are refused, and the worker learns where to start again."""
    [job] = field.submit()
    hand = field.worker()
    run = field.run(hand, job)
    hand.write(job, 2)
    run.generate(6)
    _, words = hand.attempts.progress([run.advance(5)], 2)
    assert words == [Kept("gap", 2)]
    assert hand.attempts.finish(run.advance(5), succeeded()) == Kept("gap", 2)
    assert hand.attempts.finish(run.advance(2), succeeded()) is None
    assert indices(stored(field, job)) == list(range(8))


def test_as_many_tokens_as_an_outage_held_up_fit_in_one_finish(field: Field) -> None:
    """After a long outage a worker hands in 20,000 tokens with its outcome."""
    [job] = field.submit(max_tokens=20_000)
    hand = field.worker()
    field.run(hand, job)
    assert hand.finish(job, tokens=20_000) is None
    assert field.view(job).usage.completion_tokens == 20_000


def test_a_claim_repeated_with_its_nonce_gets_the_same_answer(field: Field) -> None:
    """A worker whose claim was granted but not answered asks again and has its job."""
    field.submit()
    hand = field.worker()
    [message] = field.dispatch()
    first = hand.attempts.claim(message.id, message.number, "n")
    again = hand.attempts.claim(message.id, message.number, "n")
    assert isinstance(first, Claim)
    assert isinstance(again, Claim)
    assert again.age_s >= first.age_s
    assert replace(again, age_s=first.age_s) == first
    assert field.worker("mill").attempts.claim(message.id, message.number, "m") == Refusal("stale")
    assert field.view(message.id).attempt == 1


def test_a_message_is_good_for_one_dispatch_only(field: Field) -> None:
    """A message delivered long after its job went back and out again claims nothing."""
    [job] = field.submit()
    hand = field.worker()
    run = field.run(hand, job)
    old = Dispatch(job, 1, "tiny-bloom", "normal", "")
    hand.release("retry", "engine_error", wait_s=5)
    assert hand.claim(old) == Refusal("stale"), "a retry would start before its time"
    field.later(5_001)
    hand.beat()
    field.keep()
    [new] = field.dispatch()
    assert hand.claim(old) == Refusal("stale")
    assert new.number == 2
    assert isinstance(hand.claim(new), Claim)
    assert hand.runs[job].nonce != run.nonce


def test_a_message_of_a_job_that_is_gone_is_dropped(field: Field) -> None:
    """A redelivery after a job was trimmed does not create it again."""
    hand = field.worker()
    assert hand.claim(Dispatch("gone", 1, "tiny-bloom", "normal", "")) == Refusal("unknown")
    assert field.client.exists(keys.job("gone")) == 0


def test_a_message_of_a_job_that_has_ended_says_how(field: Field) -> None:
    """A second delivery of a finished job learns its state, so that a plain Celery caller gets its outcome."""
    [job] = field.submit()
    hand = field.worker()
    field.run(hand, job)
    hand.finish(job)
    assert hand.claim(Dispatch(job, 1, "tiny-bloom", "normal", "")) == Refusal("ended", JobState.SUCCEEDED)


def test_a_stale_owner_changes_nothing(field: Field) -> None:
    """Once another has claimed a job, its former owner can neither write, finish, fail nor release it."""
    [job] = field.submit()
    slow, quick = field.worker("slow"), field.worker("quick")
    old = field.run(slow, job)
    slow.write(job, 3)
    field.later(LEASE_OVER)
    quick.beat()
    field.keep()
    field.run(quick, job)
    quick.write(job, 2)
    before = {name: field.read(name) for name in (keys.job(job), keys.out(job), keys.history(job))}
    old.generate(9)
    assert slow.attempts.progress([old.advance()], 2)[1] == [Kept("lost", 5, JobState.RUNNING)]
    assert slow.attempts.finish(old.advance(), succeeded()) is JobState.RUNNING
    assert slow.attempts.finish(old.advance(), failed()) is JobState.RUNNING
    assert slow.attempts.release([(job, old.nonce)], "lost", "engine_lost") == [None]
    assert {name: field.read(name) for name in before} == before
    makers = [old.nonce] * 3 + [quick.runs[job].nonce] * 2
    assert stored(field, job) == [token(index, maker) for index, maker in enumerate(makers)]


def test_the_next_owner_goes_on_from_the_tokens_kept(field: Field) -> None:
    """A job that moves is resumed: its claim carries what was generated, and usage says how much was not redone."""
    [job] = field.submit()
    hand = field.worker()
    field.run(hand, job)
    hand.write(job, 4)
    hand.release("drain", "drain")
    other = field.worker("mill")
    run = field.run(other, job)
    assert indices(run.entries) == [0, 1, 2, 3]
    other.finish(job, tokens=2)
    view = field.view(job)
    assert view.token_ids == [0, 1, 2, 3, 4, 5]
    assert view.usage.resumed_tokens == 4
    assert [record.tokens for record in view.history] == [4, 2]
    assert [record.reason for record in view.history] == ["drain", "finish"]


def test_only_the_server_tells_the_time(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client whose clock is a day ahead neither expires jobs nor changes when they were made."""
    import time

    monkeypatch.setattr(time, "time", lambda: 4e9)
    [job] = field.submit(deadline_s=60, job_id="far")
    field.keep()
    view = field.view(job)
    assert view.state is JobState.QUEUED
    assert view.created_at < 4e9


def test_a_worker_without_room_claims_nothing(field: Field) -> None:
    """While a worker says that it has room for none, its claims are refused, and the job goes to another at once."""
    [job] = field.submit()
    broken, other = field.worker("broken"), field.worker("other")
    [message] = field.dispatch()
    broken.capacity = 0
    broken.beat()
    assert broken.claim(message) == Refusal("unable")
    assert field.state(job) == "queued"
    [again] = field.dispatch()
    assert isinstance(other.claim(again), Claim)


def test_a_claim_counts_retries_apart_from_other_attempts(field: Field) -> None:
    """Drains and deaths make no later retry wait longer."""
    [job] = field.submit()
    hand = field.worker()
    for kind, before in (("drain", 0), ("retry", 0), ("drain", 1), ("lost", 1), ("retry", 1), ("drain", 2)):
        field.dispatch()
        claim = hand.claim(field.mail.pop(job))
        assert isinstance(claim, Claim)
        assert claim.retries == before
        hand.release(kind, kind)  # type: ignore[arg-type]
