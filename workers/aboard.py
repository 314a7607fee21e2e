"""A job aboard a worker: what the engine is told of it, what has come of it so far, and how it ended.

Knows neither the ledger's calls nor the engine process; ``workers.runner`` moves jobs between them.
"""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass, field

from farm.contracts import JobState, Request
from farm.ledger.attempts import Advance, Claim, Outcome
from farm.ledger.records import entry
from farm.results import JobError
from workers.engine.protocol import Add, Admitted, Emitted, Event, Failed, Finished, SamplingParams


@dataclass(frozen=True, slots=True)
class Ending:
    """How a task thread's job ended: with a state, handed back (``state`` queued), or taken away (``state`` None; then
    ``found`` is what the ledger says of it). tokens: how many it has in all, where this worker ended it."""

    state: JobState | None
    reason: str
    error: JobError | None = None
    tokens: int = 0
    found: JobState | None = None


@dataclass
class Aboard:
    """One job on its way through the engine.

    ``entries`` are all its tokens from index 0; the ledger is known to hold ``flushed`` of them. Of the new ones
    ``received`` came from the engine, and ``accepted`` are on the account as taken by the ledger; ``is_closed``: what
    else comes is of no use. ``ttft_s`` and ``total_s`` are since its submission.
    """

    claim: Claim
    entries: list[str]
    flushed: int
    prompt_tokens: int = 0
    final: Finished | Failed | None = None
    ending: Ending | None = None
    life: object = None
    """Which life of the engine runs it."""
    received: int = 0
    accepted: int = 0
    is_closed: bool = False
    ttft_s: float | None = None
    claimed_at: float = field(default_factory=time.monotonic)
    settled: threading.Event = field(default_factory=threading.Event)
    _settling: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def of(cls, claim: Claim) -> Aboard:
        """A job as it was claimed: the ledger holds what earlier attempts generated."""
        kept = [entry(token_id, text, None, None) for token_id, text in claim.kept]
        return cls(claim, kept, len(kept))

    @property
    def total_s(self) -> float:
        """Since its submission: by the server's clock up to the claim, by ours from there."""
        return self.claim.age_s + time.monotonic() - self.claimed_at

    @property
    def time_per_output_token_s(self) -> float | None:
        """The mean of this attempt; None when it gave fewer than two tokens."""
        if not isinstance(self.final, Finished) or self.received < 2:
            return None
        return self.final.decode_s / (self.received - 1)

    def facts(self, ending: Ending) -> dict[str, str | int | float | None]:
        """What is said of a job that leaves: names, numbers and times, and nothing of its text."""
        state, claim = ending.state or ending.found, self.claim
        return {
            "job": claim.id,
            "attempt": claim.attempt,
            "tenant": claim.tenant,
            "state": state.value if state is not None else None,
            "reason": ending.reason,
            "prompt_tokens": self.prompt_tokens,
            "tokens": len(claim.kept) + self.accepted,
            "resumed_tokens": len(claim.kept),
            "queued_s": round(claim.age_s, 3),
            "ttft_s": None if self.ttft_s is None else round(self.ttft_s, 3),
            "total_s": round(self.total_s, 3),
        }

    def settle(self, *, final: Finished | Failed | None = None, ending: Ending | None = None) -> bool:
        """Decide how it ends. False: another thread had already."""
        with self._settling:
            if self.settled.is_set():
                return False
            self.final, self.ending = final, ending
            self.settled.set()
            return True

    def take(self, event: Event) -> None:
        """Take in what the engine says of it."""
        if isinstance(event, Emitted):
            self.entries += [entry(t.id, t.text, t.logprob, t.top) for t in event.tokens]
        elif isinstance(event, Admitted):
            self.prompt_tokens = event.prompt_tokens
        else:
            self.settle(final=event)

    def advance(self) -> Advance:
        """What the ledger is not known to hold yet."""
        return Advance(self.claim.id, self.claim.nonce, self.flushed, self.entries[self.flushed :], self.prompt_tokens)


def outcome_of(final: Finished | Failed, fingerprint: str) -> Outcome:
    """What the ledger is told of a job that the engine has ended for good. fingerprint: of the model."""
    if isinstance(final, Failed):
        return Outcome(JobState.FAILED, None, "", fingerprint, JobError(final.code, final.message))
    if final.reason == "expired":
        return Outcome(JobState.EXPIRED, final.reason, final.tail, fingerprint)
    return Outcome(JobState.SUCCEEDED, final.reason, final.tail, fingerprint)


def order(claim: Claim) -> Add:
    """What the engine is told of a claimed job."""
    return Add(
        id=claim.nonce,
        prompt=claim.request.prompt,
        params=sampling_params(claim.request, claim.id),
        resume=[token_id for token_id, _ in claim.kept],
        deadline_s=claim.deadline_s,
        scope=claim.tenant,
        was_computed=claim.was_aboard,
    )


def sampling_params(request: Request, job_id: str) -> SamplingParams:
    """The engine's half of a request. Without a seed of its own a job gets one that every attempt gets again."""
    seed = request.seed
    if seed is None:
        seed = int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:7])
    return SamplingParams(
        max_tokens=request.max_tokens,
        min_tokens=request.min_tokens,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        seed=seed,
        stop=tuple(request.stop),
        stop_token_ids=tuple(request.stop_token_ids),
        logprobs=request.logprobs,
        ignore_eos=request.ignore_eos,
    )
