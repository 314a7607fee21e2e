"""Submit, read and cancel jobs: the ledger as its users need it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import redis

from farm import keys
from farm.connection import address, connect, our_errors
from farm.contracts import SAFE_NAME, JobState, Priority, Request, created_at, fingerprint, job_id_of, model_name
from farm.errors import FarmError, InvalidRequest, JobGone, JobNotFound, nearest
from farm.ledger.admission import Rest, Word, conflict, hopeless, is_refused, outcome, refusal, too_late
from farm.ledger.forecast import Standing, read
from farm.ledger.records import ModelFacts, Piece, Submission
from farm.ledger.scripts import Scripts
from farm.ledger.views import logprobs_of, view_of
from farm.ledger.webhook_log import lane_and_url
from farm.results import JobView
from farm.settings import Settings
from farm.time_limit import time_limit

SUBMIT_CHUNK = 100


class Jobs:
    """The ledger for producers and readers. Thread-safe."""

    def __init__(self, settings: Settings, client: redis.Redis | None = None) -> None:
        self.settings = settings
        self.client = client or connect(settings.redis)
        self.where = address(settings.redis)
        self.scripts = Scripts(self.client, self.where, settings.redis)
        self.has_answered = False
        """Whether the server has ever answered: if so, it is there, and a failure is an outage."""
        # How long a write that must not be lost may take to reach the disk or replicas; None: nobody waits for it.
        self.durable_ms = int(settings.redis.timeout_s * 500) if settings.redis.is_durable else None
        self._retention_ms = int(settings.limits.retention_s * 1000)

    def place(
        self,
        request: Request,
        *,
        tenant: str | None = None,
        job_id: str | None = None,
        idempotency_key: str | None = None,
        plain: str = "",
        part_of: str = "",
    ) -> Submission:
        """Give a request its id, model and tenant. Raises InvalidRequest for names that don't fit in a key."""
        tenant = self.settings.client.tenant if tenant is None else tenant
        if not SAFE_NAME.match(tenant):
            raise InvalidRequest(
                "tenant", f"{tenant[:60]!r} is no name; use up to 128 letters, digits, '.', '_' and '-'"
            )
        if job_id is None:
            job_id = job_id_of(tenant, idempotency_key)
        if not SAFE_NAME.match(job_id):
            raise InvalidRequest("id", f"{job_id[:60]!r} is no job id; use up to 128 letters, digits, '.', '_' and '-'")
        return Submission(job_id, request, model_name(request.model or self.settings.model.id), tenant, plain, part_of)

    def submit(self, submissions: Sequence[Submission]) -> list[bool]:
        """Write jobs; True for each that is new, False where the same job was there already.

        Calls of 100 are sent one after the other, each accepted whole or not at all. The first one asks for room for
        all of them, so that a list is refused before any of it is written, unless others take the room meanwhile.

        Raises DeadlineUnmeetable, and then none was written; IdempotencyConflict if an id is taken by another request
        (the rest of its call is written all the same); QuotaExceeded, QueueFull: there is room later; ExceedsQuota:
        never for so much at once; ServerFull; for these jobs of earlier calls stay. ServerUnreachable (then jobs may or
        may not be written). Whatever was raised, the same jobs may be submitted again: those that are there already
        are refused for no reason.
        """
        for job, eta_s in self._hopeless(submissions):
            raise too_late(job, eta_s)
        words: list[Word] = []
        rest = Rest((job.id, job.tenant, job.cost) for job in submissions)
        for start in range(0, len(submissions), SUBMIT_CHUNK):
            chunk = submissions[start : start + SUBMIT_CHUNK]
            rest.sent(job.id for job in chunk)
            answer = self._write(chunk, rest)
            if is_refused(answer[0]) and rest:
                # What is there already needs no room: a repetition must not be refused.
                rest.sent(self._known(rest.ids))
                answer = self._write(chunk, rest)
            if (error := refusal(answer[0], self.where)) is not None:
                raise error
            words += answer
        for job, word in zip(submissions, words, strict=True):
            if word == "conflict":
                raise conflict(job)
        return [word == "new" for word in words]

    def in_time(self) -> AbstractContextManager[None]:
        """A block whose calls take no longer together than one of them may."""
        return time_limit(self.settings.redis.timeout_s)

    def submit_each(self, submissions: Sequence[Submission]) -> list[bool | FarmError]:
        """Write jobs that have nothing to do with one another: each is accepted or refused by itself.

        Returns for each whether it is new, or the error that ``submit`` would raise for it alone. Raises
        ServerUnreachable.
        """
        late = {id(job): too_late(job, eta_s) for job, eta_s in self._hopeless(submissions)}
        wanted = [job for job in submissions if id(job) not in late]
        words: list[Word] = []
        for start in range(0, len(wanted), SUBMIT_CHUNK):
            words += self._write(wanted[start : start + SUBMIT_CHUNK], None)
        answers = iter(words)
        return [late.get(id(job)) or outcome(job, next(answers), self.where) for job in submissions]

    def _write(self, chunk: Sequence[Submission], rest: Rest | None) -> list[Word]:
        """Call the script. rest: what is still to come, when all or none is wanted; None: each by itself."""
        limits = self.settings.limits
        args: list[str | int] = [limits.max_queued_jobs or "", limits.queued_jobs or "", limits.queued_tokens or ""]
        args += ("1", "") if rest is None else ("", rest.to_json())
        for job in chunk:
            deadline_ms = math.ceil((job.request.deadline_s or 0) * 1000)
            text = job.request.to_json()
            args += (job.id, fingerprint(text + job.part_of), job.model, job.tenant, job.request.priority)
            args += (job.cost, deadline_ms, job.plain, lane_and_url(job.request.webhook_url), text)
        answer: list[Word] = self.scripts.call("submit", *args, durable_ms=self.durable_ms)
        self.has_answered = True
        return answer

    def conflicting(self, submissions: Sequence[Submission]) -> bool:
        """Whether any id is taken by another request."""
        with our_errors(self.where), self.client.pipeline(transaction=False) as pipe:
            for job in submissions:
                pipe.hget(keys.job(job.id), "fingerprint")
            found = pipe.execute()
        pairs = zip(submissions, found, strict=True)
        return any(seen and seen != fingerprint(job.request.to_json() + job.part_of) for job, seen in pairs)

    def _hopeless(self, submissions: Sequence[Submission]) -> list[tuple[Submission, float]]:
        """New jobs whose deadlines can't be met, with estimates. One that is there is not refused any more."""
        late = hopeless(submissions, self.newcomer)
        known = set(self._known([job.id for job, _ in late])) if late else ()
        return [(job, eta_s) for job, eta_s in late if job.id not in known]

    def _known(self, job_ids: Sequence[str]) -> list[str]:
        with our_errors(self.where), self.client.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.exists(keys.job(job_id))
            return [job_id for job_id, is_there in zip(job_ids, pipe.execute(), strict=True) if is_there]

    def view(self, job_id: str, *, with_position: bool = False) -> JobView:
        """All about one job. Raises JobGone after its retention, JobNotFound for an id that never was."""
        [view] = self.views([job_id])
        if view is None:
            raise self.missing(job_id)
        return self.placed([view])[0] if with_position else view

    def placed(self, views: Sequence[JobView]) -> list[JobView]:
        """The jobs with their places in line, those that wait."""
        waiting = [view.id for view in views if view.state in (JobState.QUEUED, JobState.DISPATCHED)]
        found = dict(zip(waiting, self.standings(waiting), strict=True))
        return [
            replace(view, position=at.position, eta_s=at.eta_s(view.least_tokens, view.most_tokens))
            if (at := found.get(view.id)) and at.position
            else view
            for view in views
        ]

    def standings(self, job_ids: Sequence[str]) -> list[Standing]:
        """Where jobs stand in line, in the order given."""
        found: list[Standing] = []
        while len(found) < len(job_ids):
            found += self._positions(*job_ids[len(found) : len(found) + SUBMIT_CHUNK])
        return found

    def newcomer(self, model: str, priority: Priority, tenant: str) -> Standing:
        """Where a job would stand that came now."""
        [standing] = self._positions("", model, priority, tenant)
        return standing

    def _positions(self, *wanted: str) -> list[Standing]:
        settings = self.settings
        live_ms = int(settings.keeper.liveness_s * 1000)
        return read(self.scripts.call("position", live_ms, settings.limits.high_lead_tokens, *wanted))

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
        return [view_of(job_id, *rest) if rest[0] else None for job_id, *rest in triples]

    def pieces(self, wanted: Iterable[tuple[str, int]]) -> list[Piece | None]:
        """For each (job, index): its state and the tokens from that index on; None where no job is."""
        # A script, for a pipeline of two commands a job costs the one reader of many streams five times as much.
        asked: list[str | int] = [part for pair in wanted for part in pair]
        pieces: list[Piece | None] = []
        for start in range(0, len(asked), 2 * SUBMIT_CHUNK):
            chunk = asked[start : start + 2 * SUBMIT_CHUNK]
            answer = self.scripts.call("pieces", *chunk)
            fields = (answer[part::4] for part in range(4))
            for index, state, tail, restarts, entries in zip(chunk[1::2], *fields, strict=True):
                tokens = json.loads(f"[{entries}]") if entries else []
                texts = [(token[0], token[1]) for token in tokens]
                if state:
                    logprobs = logprobs_of(tokens)
                    pieces.append(Piece(JobState(state), int(index), texts, tail, logprobs, int(restarts)))
                else:
                    pieces.append(None)
        return pieces

    def cancel(self, job_ids: Sequence[str]) -> list[JobState | None]:
        """End jobs that have not ended. Returns each job's state afterwards, None where no job is."""
        states: list[str] = []
        for start in range(0, len(job_ids), SUBMIT_CHUNK):
            states += self.scripts.call("cancel", self._retention_ms, *job_ids[start : start + SUBMIT_CHUNK])
        return [JobState(state) if state else None for state in states]

    def forget(self, tenant: str, job_ids: Sequence[str]) -> int:
        """Drop jobs of a tenant that have ended and that nobody will ask for any more. Returns how many there were."""
        chunks = [job_ids[start : start + SUBMIT_CHUNK] for start in range(0, len(job_ids), SUBMIT_CHUNK)]
        return sum(int(self.scripts.call("forget", tenant, *chunk)) for chunk in chunks)

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

    def missing(self, job_id: str) -> JobNotFound:
        """The error for a job that is not there: JobGone if its time is past, else JobNotFound."""
        created = created_at(job_id)
        if created is not None and created < time.time() - self.settings.limits.retention_s:
            return JobGone(f"job {job_id} is gone: finished jobs are kept {self.settings.limits.retention_s:g} s")
        return JobNotFound(f"job {job_id} is unknown; check the id and that this is the right farm ({self.where})")
