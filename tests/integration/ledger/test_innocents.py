"""Hypothesis looks for a mix of prompts that kill engines in which one that doesn't is declared dead."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farm import keys
from farm.contracts import JobState
from farm.ledger.attempts import PROOF, Claim
from farm.ledger.jobs import Jobs
from tests.integration.ledger.farmhand import Field, Hand

ROUNDS = 1_500
TOKENS = 24  # of an innocent; poison would need more than it can get


@dataclass(frozen=True)
class Poison:
    """Kills the engine when it has ``at`` tokens, counted from the beginning or from each resumption; some take the
    worker along, as a container without memory does."""

    at: int
    is_relative: bool
    takes_worker: bool

    def kills(self, tokens: int, start: int) -> bool:
        return tokens - (start if self.is_relative else 0) == self.at


@dataclass
class Engine:
    """A worker's engine by the runner's rules: who is on trial enters alone, and all enter at once otherwise."""

    hand: Hand
    poisons: dict[str, Poison]
    rng: Random
    inside: dict[str, int] = field(default_factory=dict)
    trial: tuple[str, int] | None = None

    def gained(self, job: str) -> int:
        return len(self.hand.runs[job].entries) - self.inside[job]

    def turn(self, world: Field) -> None:
        """Claim, let in, compute a token each or die, write."""
        for message in list(world.mail.values()):
            # A claim that was on its way when a trial began comes aboard all the same.
            if (self.trial and self.rng.random() < 0.8) or len(self.hand.runs) >= self.hand.capacity:
                break
            claim = self.hand.claim(world.mail.pop(message.id))
            if isinstance(claim, Claim) and claim.proof and not self.trial:
                self.trial = (claim.id, claim.proof)
        for job, run in self.hand.runs.items():
            is_waiting = self.trial is not None and (
                job != self.trial[0] or any(self.gained(other) < PROOF for other in self.inside)
            )
            if job not in self.inside and not is_waiting:
                self.inside[job] = len(run.entries)
        killers = [job for job in self.inside if self._is_fatal(job)]
        if killers:
            self._die(world, takes_worker=any(self.poisons[job].takes_worker for job in killers))
            return
        for job in self.inside:
            self.hand.runs[job].generate(1)
        self.hand.beat()
        for job in [
            job for job in self.inside if len(self.hand.runs[job].entries) >= TOKENS and job not in self.poisons
        ]:
            self.hand.finish(job)
            self._forget(job)
        if self.trial and self.trial[0] in self.inside and self.gained(self.trial[0]) >= self.trial[1]:
            self.trial = None

    def _is_fatal(self, job: str) -> bool:
        poison = self.poisons.get(job)
        return poison is not None and poison.kills(len(self.hand.runs[job].entries), self.inside[job])

    def _die(self, world: Field, *, takes_worker: bool) -> None:
        if takes_worker:
            self.hand = world.worker(self.hand.name, self.hand.capacity)
        else:
            self.hand.release("lost", "engine_died", list(self.inside))
            self.hand.release("drain", "engine_starting")
        self.inside.clear()
        self.trial = None

    def _forget(self, job: str) -> None:
        del self.inside[job]
        if self.trial and self.trial[0] == job:
            self.trial = None


poisons = st.builds(Poison, st.integers(0, PROOF - 1), st.booleans(), st.booleans()).filter(
    lambda poison: poison.at > 0 or not poison.is_relative
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(poisons, min_size=1, max_size=4), st.integers(1, 3), st.integers(0, 2**32))
def test_poison_dies_and_innocents_never(jobs: Jobs, kinds: list[Poison], workers: int, seed: int) -> None:
    """However many prompts kill engines, and after how many tokens: all of them end dead, and all others succeed."""
    rng = Random(seed)  # how much is drawn depends on the server's clock, which Hypothesis can't replay
    jobs.client.flushall()
    world = Field(jobs)
    ids = world.submit(len(kinds) + 7)
    rng.shuffle(ids)
    doomed = dict(zip(ids, kinds, strict=False))
    engines = [Engine(world.worker(f"w{number}", 5), doomed, rng) for number in range(workers)]
    for _ in range(ROUNDS):
        world.later(501)
        for engine in engines:
            engine.hand.beat()
        world.keep()
        world.dispatch()
        rng.shuffle(engines)
        for engine in engines:
            engine.turn(world)
        if jobs.client.zcard(keys.kept("default")) == len(ids):
            break
    states = {view.id: view.state for view in jobs.views(ids) if view}
    assert states == {job: JobState.DEAD if job in doomed else JobState.SUCCEEDED for job in ids}
