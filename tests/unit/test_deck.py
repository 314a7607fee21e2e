"""Who goes into the engine when: all at once, but nobody with a job that is on trial."""

from __future__ import annotations

import threading

import pytest

from farm.contracts import JobState, Request
from farm.ledger.attempts import PROOF, Claim
from tests.conftest import wait_until
from workers.aboard import Aboard, Ending
from workers.deck import Deck

pytestmark = pytest.mark.fast
LIFE = object()


def job(name: str, proof: int = 0, kept: int = 0) -> Aboard:
    claim = Claim(
        id=name,
        nonce=name,
        attempt=1,
        retries=0,
        proof=proof,
        request=Request(prompt="x"),
        deadline_s=None,
        is_plain=False,
        tenant="t",
        age_s=0.0,
        was_aboard=False,
        kept=[(0, "")] * kept,
    )
    return Aboard.of(claim)


class Boarding(threading.Thread):
    """A job that comes aboard in a thread of its own, as they do."""

    def __init__(self, deck: Deck, running: Aboard, serving: object = LIFE) -> None:
        super().__init__(daemon=True)
        self.deck, self.running, self.serving = deck, running, serving
        self.is_through = False
        self.start()
        wait_until(lambda: self.is_through or deck.get(running.claim.nonce), why="it to come aboard")

    def run(self) -> None:
        self.life = self.deck.board(self.running, lambda: self.serving)
        self.is_through = True

    def joined(self) -> object:
        self.join(10)
        assert self.is_through
        return self.life


def test_jobs_go_in_at_once() -> None:
    """As a rule nobody waits for anybody."""
    deck = Deck()
    for name in "abc":
        assert deck.board(job(name), lambda: LIFE) is LIFE
    assert len(deck) == 3
    assert not deck.is_on_trial


def test_a_job_on_trial_waits_for_the_others_to_be_proven() -> None:
    """It goes in once each job inside has 16 new tokens in the ledger, or has ended; resumed ones do not count."""
    deck, first, second = Deck(), job("a", kept=100), job("b")
    for running in (first, second):
        deck.board(running, lambda: LIFE)
    trial = Boarding(deck, job("t", proof=1))
    assert deck.is_on_trial
    first.flushed += PROOF - 1
    second.settle(ending=Ending(None, "lost"))
    assert trial.running.life is None
    first.flushed += 1
    assert trial.joined() is LIFE


def test_nobody_follows_until_it_has_proven_itself() -> None:
    """Whoever was claimed at the same moment waits at the door."""
    deck, trial = Deck(), job("t", proof=2, kept=5)
    assert deck.board(trial, lambda: LIFE) is LIFE
    late = Boarding(deck, job("a"))
    trial.flushed += 1
    assert not deck.end_trial()
    assert late.running.life is None
    trial.flushed += 1
    assert deck.end_trial()
    assert late.joined() is LIFE
    assert not deck.end_trial()


def test_a_trial_ends_with_its_job() -> None:
    """One that failed, was cancelled or died with its engine holds up nobody."""
    deck, trial = Deck(), job("t", proof=1)
    deck.board(trial, lambda: LIFE)
    late = Boarding(deck, job("a"))
    deck.leave(trial)
    assert late.joined() is LIFE
    assert not deck.is_on_trial


def test_who_waits_at_the_door_can_be_sent_away() -> None:
    """A drain, a cancellation or the engine's death reaches those that wait, too."""
    deck, trial = Deck(), job("t", proof=1)
    deck.board(trial, lambda: LIFE)
    cancelled, orphaned = Boarding(deck, job("a")), Boarding(deck, job("b"))
    cancelled.running.settle(ending=Ending(JobState.QUEUED, "drain"))
    assert cancelled.joined() is None
    orphaned.serving = None
    deck.leave(trial)
    assert orphaned.joined() is None


def test_without_an_engine_nobody_comes_aboard() -> None:
    """The job is handed back instead."""
    deck = Deck()
    assert deck.board(job("a"), lambda: None) is None
    assert len(deck) == 0
