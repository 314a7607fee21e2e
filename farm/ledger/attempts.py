"""A worker's side of the ledger: claim a job, keep it while generating, end it or hand it back.

The nonce that a claim makes is its fence: whoever holds another one can write nothing.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from farm import schema
from farm.contracts import JobState, Request
from farm.errors import LedgerTooNew
from farm.ledger.jobs import Jobs
from farm.ledger.records import ModelFacts
from farm.results import JobError

SUSPECT_WAIT_MS = 150  # a flush, and a step or two: how long the one before it takes to be cleared
ENTRIES_PER_CALL = 5_000  # below the limit of Lua's unpack
PROOF = 16  # new tokens that show that a job does not kill engines; as in scripts/shared/base.lua
ReleaseKind = Literal["drain", "retry", "lost"]


@dataclass(frozen=True, slots=True)
class Claim:
    """A job to run. ``kept`` holds the (token id, text) pairs that earlier attempts generated; ``retries`` counts those
    attempts that ended with an error worth another. ``proof`` is 0, or how many new tokens clear it: it has been aboard
    at so many deaths that it must run alone until then, for the next one decides. ``age_s`` is the time since it was
    submitted, by the server's clock; ``was_aboard``: an engine has had it before."""

    id: str
    nonce: str
    attempt: int
    retries: int
    proof: int
    request: Request
    deadline_s: float | None
    is_plain: bool
    tenant: str
    age_s: float
    was_aboard: bool
    kept: list[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is nothing to do: ended (then ``state``), stale, unknown, unregistered, draining, unable,
    suspect or newer."""

    reason: str
    state: JobState | None = None


@dataclass(frozen=True, slots=True)
class Advance:
    """New entries of one running job, from token index ``start`` on."""

    id: str
    nonce: str
    start: int
    entries: list[str]
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Kept:
    """What the ledger said to an Advance: ok, gap (send again from ``tokens``) or lost (stop).

    ``state``: of a job that is lost, if there still is one.
    """

    word: Literal["ok", "gap", "lost"]
    tokens: int
    state: JobState | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended."""

    state: Literal[JobState.SUCCEEDED, JobState.FAILED, JobState.EXPIRED]
    finish_reason: str | None
    tail: str
    fingerprint: str
    error: JobError | None = None


class Attempts:
    """The ledger for one worker. Thread-safe."""

    def __init__(self, jobs: Jobs, worker: str) -> None:
        self.jobs = jobs
        self.worker = worker
        settings = jobs.settings
        self._lease_ms = int(settings.lease.lease_s * 1000)
        self._stall_ms = int(settings.keeper.stall_s * 1000)
        self._retention_ms = int(settings.limits.retention_s * 1000)
        self._keeper = settings.keeper
        self._call = jobs.scripts.call

    def register(self, name: str, model: str, capacity: int, role: str, facts: ModelFacts | None) -> int:
        """Make the worker known; jobs of an older incarnation of ``name`` are queued again. Returns how many.

        Raises LedgerTooNew: a newer version writes what this one could not read.
        """
        about = ""
        if facts is not None:
            about = json.dumps(
                {
                    "context": facts.context,
                    "vocab": facts.vocab,
                    "fingerprint": facts.fingerprint,
                    "tokenizer": facts.tokenizer,
                }
            )
        taken, too_new = self._call(
            "register",
            self.worker,
            name,
            model,
            capacity,
            role,
            about,
            self._stall_ms,
            self._lease_ms,
            self._retention_ms,
            self._keeper.max_strikes,
            self._keeper.max_losses,
        )
        if too_new:
            raise LedgerTooNew(
                f"the ledger at {self.jobs.where} is of schema {too_new}, and this version knows up to {schema.READS}; "
                "run the version that wrote it, or a newer one"
            )
        return int(taken)

    def claim(self, job_id: str, dispatch: int, nonce: str | None = None) -> Claim | Refusal:
        """Take a dispatched job. The same nonce again gets the same answer."""
        nonce = nonce or secrets.token_hex(8)
        answer = self._call(
            "claim",
            job_id,
            dispatch,
            self.worker,
            nonce,
            self._lease_ms,
            self._retention_ms,
            SUSPECT_WAIT_MS,
            self._keeper.max_strikes,
            self._keeper.max_losses,
        )
        if answer[0] != "claimed":
            return Refusal(answer[0], JobState(answer[1]) if len(answer) > 1 else None)
        _, request, attempt, retries, proof, left_ms, plain, tenant, age_ms, aboard, *entries = answer
        return Claim(
            id=job_id,
            nonce=nonce,
            attempt=int(attempt),
            retries=int(retries),
            proof=int(proof),
            request=Request.model_validate_json(request),
            deadline_s=int(left_ms) / 1000 if left_ms else None,
            is_plain=bool(plain),
            tenant=tenant,
            age_s=int(age_ms) / 1000,
            was_aboard=aboard == "1",
            kept=[(token[0], token[1]) for token in map(json.loads, entries)],
        )

    def progress(
        self, advances: Sequence[Advance], capacity: int, *, draining: bool = False, trouble: str = ""
    ) -> tuple[bool, list[Kept]]:
        """Write tokens and renew the leases of these jobs. Returns whether the worker is known, and a word per job.

        trouble: why the worker takes no jobs, for people.
        """
        args: list[str | int] = [self.worker, capacity, int(draining), self._stall_ms, self._lease_ms, trouble]
        for advance in advances:
            entries = advance.entries[:ENTRIES_PER_CALL]
            args += (advance.id, advance.nonce, advance.start, advance.prompt_tokens, len(entries), *entries)
        answer = self._call("progress", *args)
        words = [_kept(word, int(tokens)) for word, tokens in zip(answer[1::2], answer[2::2], strict=True)]
        return answer[0] == "ok", words

    def finish(self, last: Advance, outcome: Outcome) -> Kept | JobState | None:
        """Write the outcome. Returns None when it stands, Kept for a gap, or the state that somebody else gave the job.

        Raises ServerUnreachable: call again, it is written once.
        """
        fields = ["tail", outcome.tail, "fingerprint_model", outcome.fingerprint]
        if outcome.finish_reason:
            fields += ["finish_reason", outcome.finish_reason]
        if outcome.error:
            error = {"code": outcome.error.code, "message": outcome.error.message, "retryable": outcome.error.retryable}
            fields += ["error", json.dumps(error)]
        answer = self._call(
            "finish",
            last.id,
            last.nonce,
            outcome.state.value,
            last.start,
            last.prompt_tokens,
            self._retention_ms,
            len(last.entries),
            *last.entries,
            *fields,
            durable_ms=self.jobs.durable_ms,
        )
        if answer[0] == "ok":
            return None
        if answer[0] == "gap":
            return Kept("gap", int(answer[1]))
        return JobState(answer[1]) if answer[1] != "unknown" else JobState.CANCELLED

    def release(
        self,
        held: Sequence[tuple[str, str]],
        kind: ReleaseKind,
        reason: str,
        *,
        wait_s: float = 0.0,
        draining: bool = False,
        error: JobError | None = None,
    ) -> list[JobState | None]:
        """Hand back jobs given as (id, nonce). Returns each job's state afterwards, None for one no longer ours."""
        body = error or JobError(reason, reason)
        answer = self._call(
            "release",
            self.worker,
            kind,
            int(draining),
            reason,
            int(wait_s * 1000),
            self._retention_ms,
            self._keeper.max_strikes,
            self._keeper.max_losses,
            self._keeper.max_retries,
            json.dumps({"code": body.code, "message": body.message, "retryable": body.retryable}),
            *[part for pair in held for part in pair],
        )
        return [JobState(word) if word != "lost" else None for word in answer]

    def leave(self) -> bool:
        """Forget the worker, once it holds nothing."""
        return bool(self._call("leave", self.worker))


def _kept(said: str, tokens: int) -> Kept:
    word, _, state = said.partition(":")
    return Kept(word, tokens, JobState(state) if state else None)  # type: ignore[arg-type]
