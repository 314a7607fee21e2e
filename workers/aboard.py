"""A job aboard a worker: what the engine is told of it, what has come of it so far, and how it ended.

Knows neither the ledger's calls nor the engine process; ``workers.runner`` moves jobs between them.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field

from farm.contracts import JobState, Request
from farm.ledger.attempts import Advance, Claim
from farm.ledger.records import entry
from farm.results import JobError
from workers.engine.protocol import Add, Failed, Finished, SamplingParams


@dataclass(frozen=True, slots=True)
class Ending:
    """How a task thread's job ended: with a state, handed back (``state`` queued), or taken away (``state`` None).

    tokens: how many it has in all, where this worker ended it.
    """

    state: JobState | None
    reason: str
    error: JobError | None = None
    tokens: int = 0


@dataclass
class Aboard:
    """One job on its way through the engine.

    ``entries`` are all its tokens from index 0; the ledger is known to hold ``flushed`` of them.
    """

    claim: Claim
    entries: list[str]
    flushed: int
    prompt_tokens: int = 0
    final: Finished | Failed | None = None
    ending: Ending | None = None
    life: object = None
    """Which life of the engine runs it."""
    settled: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def of(cls, claim: Claim) -> Aboard:
        """A job as it was claimed: the ledger holds what earlier attempts generated."""
        kept = [entry(token_id, text, None, None) for token_id, text in claim.kept]
        return cls(claim, kept, len(kept))

    def settle(self, *, final: Finished | Failed | None = None, ending: Ending | None = None) -> None:
        """Decide how it ends, once."""
        if not self.settled.is_set():
            self.final, self.ending = final, ending
            self.settled.set()

    def advance(self) -> Advance:
        """What the ledger is not known to hold yet."""
        return Advance(self.claim.id, self.claim.nonce, self.flushed, self.entries[self.flushed :], self.prompt_tokens)


def order(claim: Claim) -> Add:
    """What the engine is told of a claimed job."""
    return Add(
        id=claim.nonce,
        prompt=claim.request.prompt,
        params=sampling_params(claim.request, claim.id),
        resume=[token_id for token_id, _ in claim.kept],
        deadline_s=claim.deadline_s,
        scope=claim.tenant,
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
