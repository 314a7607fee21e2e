"""Submit, read and cancel jobs: the ledger as its users need it."""

from __future__ import annotations

import json
import math
import os
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import redis

from farm import keys
from farm.connection import address, connect, our_errors, server_full
from farm.contracts import SAFE_NAME, JobState, Request, fingerprint, keyed_job_id, model_name
from farm.errors import IdempotencyConflict, InvalidRequest, JobGone, JobNotFound, nearest
from farm.ledger.scripts import Scripts
from farm.results import AttemptRecord, JobError, JobView, Timings, TokenLogprobs, Usage
from farm.settings import Settings

SUBMIT_CHUNK = 100
CHARS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Submission:
    """A checked request and its place. ``plain`` holds the headers of a plain Celery message, as JSON."""

    id: str
    request: Request
    model: str
    tenant: str
    plain: str = ""
    is_keyed: bool = False
    """Its id follows from an idempotency key: the job may have been there before."""

    @property
    def cost(self) -> int:
        """Tokens to charge its tenant until the true number is known."""
        prompt = self.request.prompt
        return self.request.max_tokens + (
            len(prompt) if isinstance(prompt, list) else len(prompt) // CHARS_PER_TOKEN + 1
        )


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a worker that serves a model said of it. ``tokenizer`` is a path that may exist on this machine."""

    name: str
    context: int
    vocab: int
    fingerprint: str
    tokenizer: str


@dataclass(frozen=True, slots=True)
class Piece:
    """What a job's stream read: entries from ``start`` on, and the state at that moment."""

    state: JobState
    start: int
    tokens: list[tuple[int, str]]
    tail: str


class Jobs:
    """The ledger for producers and readers. Thread-safe."""

    def __init__(self, settings: Settings, client: redis.Redis | None = None) -> None:
        self.settings = settings
        self.client = client or connect(settings.redis)
        self.where = address(settings.redis)
        self.scripts = Scripts(self.client, self.where)
        self.has_answered = False
        """Whether the server has ever answered: if so, it is there, and a failure is an outage."""
        # How long a write that must not be lost may take to reach the disk; None: nobody waits for it.
        self.durable_ms = int(settings.redis.timeout_s * 500) if settings.redis.durability == "fsync" else None
        self._retention_ms = int(settings.limits.retention_s * 1000)

    def place(
        self,
        request: Request,
        *,
        tenant: str | None = None,
        job_id: str | None = None,
        idempotency_key: str | None = None,
        plain: str = "",
    ) -> Submission:
        """Give a request its id, model and tenant. Raises InvalidRequest for names that don't fit in a key."""
        tenant = self.settings.client.tenant if tenant is None else tenant
        if not SAFE_NAME.match(tenant):
            raise InvalidRequest(
                "tenant", f"{tenant[:60]!r} is no name; use up to 128 letters, digits, '.', '_' and '-'"
            )
        is_keyed = job_id is not None or idempotency_key is not None
        if job_id is None:
            job_id = keyed_job_id(tenant, idempotency_key) if idempotency_key else new_job_id()
        if not SAFE_NAME.match(job_id):
            raise InvalidRequest("id", f"{job_id[:60]!r} is no job id; use up to 128 letters, digits, '.', '_' and '-'")
        model = model_name(request.model or self.settings.model.id)
        return Submission(job_id, request, model, tenant, plain, is_keyed=is_keyed)

    def submit(self, submissions: Sequence[Submission]) -> list[bool]:
        """Write jobs; True for each that is new, False where the same job was there already.

        Raises IdempotencyConflict if an id is taken by another request (the rest of its call is written all the same),
        ServerFull (jobs of earlier calls stay), ServerUnreachable (then jobs may or may not be written; submit them
        again with the same ids).
        """
        words: list[str] = []
        for start in range(0, len(submissions), SUBMIT_CHUNK):
            args: list[str | int] = []
            for job in submissions[start : start + SUBMIT_CHUNK]:
                deadline_ms = math.ceil((job.request.deadline_s or 0) * 1000)
                text = job.request.to_json()
                args += (job.id, fingerprint(text), job.model, job.tenant, job.request.priority)
                args += (job.cost, deadline_ms, job.plain, text)
            words += self.scripts.call("submit", *args, durable_ms=self.durable_ms)
            self.has_answered = True
        if "full" in words:
            raise server_full(self.where)
        for job, word in zip(submissions, words, strict=True):
            if word == "conflict":
                raise IdempotencyConflict(
                    f"job {job.id} exists with another request; use another idempotency key or send the same request"
                )
        return [word == "new" for word in words]

    def view(self, job_id: str, *, with_position: bool = False) -> JobView:
        """All about one job. Raises JobGone after its retention, JobNotFound for an id that never was."""
        [view] = self.views([job_id])
        if view is None:
            raise self._missing(job_id)
        if with_position and view.state in (JobState.QUEUED, JobState.DISPATCHED):
            position, per_s = self.scripts.call("position", job_id)
            if position:
                eta_s = round(position / float(per_s), 1) if float(per_s) > 1e-4 else None
                return replace(view, position=position, eta_s=eta_s)
        return view

    def views(self, job_ids: Sequence[str]) -> list[JobView | None]:
        """Many jobs in one round trip; None for each that is not there."""
        # No MULTI: a server out of memory refuses it. A state that is read first is never ahead of the tokens.
        with our_errors(self.where), self.client.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hgetall(keys.job(job_id))
                pipe.lrange(keys.out(job_id), 0, -1)
                pipe.lrange(keys.history(job_id), 0, -1)
            answers = pipe.execute()
        self.has_answered = True
        triples = zip(job_ids, answers[::3], answers[1::3], answers[2::3], strict=True)
        return [_view(job_id, *rest) if rest[0] else None for job_id, *rest in triples]

    def pieces(self, wanted: Iterable[tuple[str, int]]) -> list[Piece | None]:
        """For each (job, index): its state and the tokens from that index on; None where no job is."""
        wanted = list(wanted)
        with our_errors(self.where), self.client.pipeline(transaction=False) as pipe:
            for job_id, index in wanted:
                pipe.hmget(keys.job(job_id), "state", "tail")
                pipe.lrange(keys.out(job_id), index, -1)
            answers = pipe.execute()
        pieces: list[Piece | None] = []
        for (_, index), (state, tail), entries in zip(wanted, answers[::2], answers[1::2], strict=True):
            tokens = [(entry[0], entry[1]) for entry in map(json.loads, entries)]
            pieces.append(Piece(JobState(state), index, tokens, tail or "") if state else None)
        return pieces

    def cancel(self, job_ids: Sequence[str]) -> list[JobState | None]:
        """End jobs that have not ended. Returns each job's state afterwards, None where no job is."""
        states: list[str] = []
        for start in range(0, len(job_ids), SUBMIT_CHUNK):
            states += self.scripts.call("cancel", self._retention_ms, *job_ids[start : start + SUBMIT_CHUNK])
        return [JobState(state) if state else None for state in states]

    def models(self) -> dict[str, ModelFacts]:
        """The models that workers have served, by name."""
        with our_errors(self.where):
            known = self.client.hgetall(keys.MODELS)
        self.has_answered = True
        return {str(name): ModelFacts(name=str(name), **json.loads(facts)) for name, facts in known.items()}

    def check_model(self, name: str) -> ModelFacts | None:
        """What is known of a model; None for the configured one before any worker has served it.

        Raises InvalidRequest for a model that nobody serves.
        """
        known = self.models()
        if name in known:
            return known[name]
        names = {*known, self.settings.model.name}
        if name not in names:
            raise InvalidRequest(
                "model", f"{name!r} is not served here{nearest(name, names)}; known: {', '.join(sorted(names))}"
            )
        return None

    def set_weight(self, tenant: str, weight: float) -> None:
        """Give a tenant a share of the farm in proportion to its weight; 1 is everyone's until set."""
        if not 0 < weight <= 1000:
            raise InvalidRequest("weight", f"{weight:g} is out of range; give more than 0 and at most 1000")
        with our_errors(self.where):
            self.client.hset(keys.WEIGHTS, tenant, f"{weight:g}")

    def _missing(self, job_id: str) -> JobNotFound:
        created = created_at(job_id)
        if created is not None and created < time.time() - self.settings.limits.retention_s:
            return JobGone(f"job {job_id} is gone: finished jobs are kept {self.settings.limits.retention_s:g} s")
        return JobNotFound(f"job {job_id} is unknown; check the id and that this is the right farm ({self.where})")


def new_job_id() -> str:
    """A UUIDv7 (RFC 9562): 48 bits of Unix milliseconds, then random bits, so that ids sort by time."""
    value = int(time.time() * 1000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76
    return str(uuid.UUID(int=value & ~(0x3 << 62) | 0x2 << 62))


def created_at(job_id: str) -> float | None:
    """The Unix time in a UUIDv7; None for any other id."""
    try:
        value = uuid.UUID(job_id)
    except ValueError:
        return None
    return (value.int >> 80) / 1000 if value.version == 7 else None


def _view(job_id: str, fields: dict[str, str], entries: list[str], past: list[str]) -> JobView:
    request = json.loads(fields["request"])
    tokens = [json.loads(entry) for entry in entries]
    error = json.loads(fields["error"]) if fields.get("error") else None
    created, started, finished = (_seconds(fields.get(name)) for name in ("created", "started", "finished"))
    first = _seconds(fields.get("first_token"))
    created = created or 0.0
    logprobs = [
        TokenLogprobs(token[0], token[1], token[2], [(top[0], top[1]) for top in token[3]])
        for token in tokens
        if len(token) > 2
    ]
    return JobView(
        id=job_id,
        state=JobState(fields["state"]),
        model=fields["model"],
        priority=request.get("priority", "normal"),
        tenant=fields["tenant"],
        created_at=created,
        started_at=started,
        finished_at=finished,
        attempt=int(fields.get("attempt", 0)),
        strikes=int(fields.get("strikes", 0)),
        text="".join(token[1] for token in tokens) + fields.get("tail", ""),
        token_ids=[token[0] for token in tokens],
        finish_reason=fields.get("finish_reason"),
        usage=Usage(
            int(fields.get("prompt_tokens", 0)), len(tokens), int(fields.get("resumed", fields.get("base", 0)))
        ),
        timings=Timings(_since(created, started), _since(created, first), _since(created, finished)),
        worker=fields.get("worker"),
        model_fingerprint=fields.get("fingerprint_model"),
        error=JobError(error["code"], error["message"], error["retryable"]) if error else None,
        history=[AttemptRecord(**json.loads(record)) for record in past],
        metadata=request.get("metadata", {}),
        wants_token_ids=request.get("return_token_ids", False),
        logprobs=logprobs if request.get("logprobs") is not None else None,
        losses=int(fields.get("losses", 0)),
        claimed_at=_seconds(fields.get("claimed")),
    )


def _seconds(milliseconds: str | None) -> float | None:
    return int(milliseconds) / 1000 if milliseconds else None


def _since(start: float, end: float | None) -> float | None:
    return None if end is None else round(end - start, 3)


def entry(token_id: int, text: str, logprob: float | None, top: list[tuple[int, float]] | None) -> str:
    """One generated token as the ledger keeps it."""
    body: list[Any] = [token_id, text] if logprob is None else [token_id, text, logprob, top or []]
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False)
