"""A worker and a keeper in one thread, with text made up by rule: the ledger around it is the real one."""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass, field
from typing import Self

from farm.contracts import JobState
from farm.errors import ServerUnreachable
from farm.ledger.attempts import Advance, Attempts, Claim, Outcome
from farm.ledger.jobs import Jobs
from farm.ledger.records import ModelFacts, entry
from farm.ledger.upkeep import Upkeep
from farm.results import JobError
from farm.settings import Settings

VOCAB = 1_000
QUICK_LEASE = {"lease_s": 0.5, "flush_s": 0.02}
QUICK_KEEPER = {"tick_s": 0.02, "lock_s": 0.2, "stall_s": 0.6, "liveness_s": 0.5, "unclaimed_s": 1.0}
TAIL = "."
BEAT_S = 0.005


def word(prompt: str, index: int) -> str:
    """The text of a prompt's token at an index."""
    return f" {prompt[:8]}{index}"


def text_of(prompt: str, tokens: int) -> str:
    """The whole text that the farmhand makes of a prompt."""
    return "".join(word(prompt, index) for index in range(tokens)) + TAIL


@dataclass
class _Running:
    claim: Claim
    index: int


@dataclass
class Farmhand:
    """Works until it is told to die. Thread-safe to steer; use it in a ``with``.

    tokens_per_beat: how many tokens each job gets between two writes; 0 holds all jobs.
    fail_prompts: prompts that fail for good. die_at: dies, without a word, when some job has so many tokens.
    """

    settings: Settings
    name: str = "hand"
    model: str = "tiny-bloom"
    capacity: int = 64
    tokens_per_beat: int = 1_000_000
    fail_prompts: frozenset[str] = frozenset()
    die_at: int | None = None
    facts: ModelFacts | None = None
    most_seen: int = field(default=0, init=False)
    claims: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._jobs = Jobs(self.settings)
        self._attempts = Attempts(self._jobs, f"{self.name}-{secrets.token_hex(3)}")
        self._upkeep = Upkeep(self._jobs)
        self._running: dict[str, _Running] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name=self.name)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> Self:
        self._register()
        self._thread.start()
        return self

    def die(self) -> None:
        """Stop at once: what it holds, it holds until its leases end."""
        self._stop.set()
        self._thread.join()
        self._jobs.client.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.die()

    def _register(self) -> None:
        facts = self.facts or ModelFacts(self.model, 2_048, VOCAB, "farmhand", "")
        self._attempts.register(self.name, self.model, self.capacity, "model", facts)

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                for message in [*self._upkeep.keep().messages, *self._upkeep.dispatch().messages]:
                    self._claim(message.id, message.number)
                self._beat()
                self._stop.wait(BEAT_S)
            except ServerUnreachable:
                self._stop.wait(0.02)

    def _claim(self, job_id: str, number: int) -> None:
        claim = self._attempts.claim(job_id, number)
        if isinstance(claim, Claim):
            self.claims.append(job_id)
            self._running[job_id] = _Running(claim, len(claim.kept))
            self.most_seen = max(self.most_seen, len(self._running))

    def _beat(self) -> None:
        advances, ends = [], []
        for running in self._running.values():
            if self.tokens_per_beat == 0:
                advances.append(self._advance(running, 0))
                continue
            left = running.claim.request.max_tokens - running.index
            if left <= self.tokens_per_beat or str(running.claim.request.prompt) in self.fail_prompts:
                ends.append(running)
            else:
                advances.append(self._advance(running, self.tokens_per_beat))
        known, words = self._attempts.progress(advances, self.capacity)
        if not known:
            self._register()
        for advance, kept in zip(advances, words, strict=True):
            if kept.word == "lost":
                del self._running[advance.id]
            else:
                self._running[advance.id].index = kept.tokens
        for running in ends:
            self._finish(running)
        if self.die_at is not None and any(r.index >= self.die_at for r in self._running.values()):
            self._stop.set()

    def _advance(self, running: _Running, tokens: int) -> Advance:
        prompt = str(running.claim.request.prompt)
        indices = range(running.index, running.index + tokens)
        entries = [entry(index % VOCAB, word(prompt, index), None, None) for index in indices]
        return Advance(running.claim.id, running.claim.nonce, running.index, entries, max(1, len(prompt) // 4))

    def _finish(self, running: _Running) -> None:
        request = running.claim.request
        if str(request.prompt) in self.fail_prompts:
            error = JobError("model_error", "the model said no")
            outcome = Outcome(JobState.FAILED, "error", "", "farmhand", error)
            last = self._advance(running, 1)
        else:
            outcome = Outcome(JobState.SUCCEEDED, "length", TAIL, "farmhand")
            last = self._advance(running, request.max_tokens - running.index)
        answer = self._attempts.finish(last, outcome)
        if answer is None or isinstance(answer, JobState):
            del self._running[running.claim.id]
        else:
            running.index = answer.tokens


def quick(settings: Settings) -> Settings:
    """The settings with short leases and ticks, so that a dead worker is noticed soon."""
    return settings.model_copy(
        update={
            "lease": settings.lease.model_validate(QUICK_LEASE),
            "keeper": settings.keeper.model_validate(QUICK_KEEPER),
        }
    )
