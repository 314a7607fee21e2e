"""The farm for Python programs: submit prompts, wait for, stream and cancel jobs.

    from farm import Farm

    with Farm() as farm:
        print(farm.generate("Once upon a time", max_tokens=32).text)

It knows the ledger and nothing of Celery or models. A ``Farm`` may be shared by threads; make one per process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from queue import SimpleQueue
from typing import Literal, Self, TypeVar, Unpack, overload

from farm.contracts import JobState
from farm.errors import (
    DeadlineUnmeetable,
    ExceedsQuota,
    FarmError,
    IdempotencyConflict,
    InvalidRequest,
    ServerUnreachable,
)
from farm.flight import Flight, deliver, run
from farm.flow import DEFAULT_WINDOW, Flow, Result
from farm.job import Job
from farm.ledger.dead import dead_ids
from farm.ledger.jobs import Jobs
from farm.ledger.listing import each_job
from farm.ledger.records import Submission
from farm.ledger.streams import Reader
from farm.ledger.usage import UsageDay, read_usage
from farm.ledger.watch import News
from farm.local.discover import discover, running_farm, with_url
from farm.patience import patiently
from farm.prompts import Params, Placer, Prompt, PromptCheck, check_samples
from farm.results import Completion, JobView
from farm.settings import Settings, load_settings

T = TypeVar("T")


class Farm:
    """A connection to a farm. Close it, or use it in a ``with``."""

    def __init__(self, settings: Settings | None = None, *, url: str | None = None, tenant: str | None = None) -> None:
        """Connect to ``url``, else FARM_REDIS__URL, else the local farm that runs. Nothing is sent yet.

        tenant: whose jobs these are; FARM_CLIENT__TENANT unless given.
        Raises SettingsError when no server is named and none runs.
        """
        settings = settings or load_settings()
        self.settings = discover(settings if url is None else with_url(settings, url))
        self.tenant = tenant or self.settings.client.tenant
        self.ledger = Jobs(self.settings)
        self.reader = Reader(self.ledger)
        self.prompts = PromptCheck(self.ledger)
        self.flights: set[Flight] = set()
        # Keeps closing out of others' last calls. Reentrant: garbage collection may end a flight in any thread.
        self._parting = threading.RLock()
        self._is_closed = False
        self._owned = ExitStack()

    @classmethod
    def local(cls, settings: Settings | None = None, *, workers: int = 1, ready_s: float = 120.0) -> Self:
        """Start a farm on this machine, which ``close`` stops; or join the local farm that runs already.

        Whatever server the settings name is left alone. ready_s: how long its workers may take to load.
        Raises SettingsError, ServerMissing, StackFailed.
        """
        settings = with_url(settings or load_settings(), None)
        if running_farm(settings) is not None:
            return cls(settings)
        from farm.local.stack import Stack  # pulls in what only an embedded farm needs

        stack = Stack(settings, workers=workers, flower=False)
        with ExitStack() as undo:
            undo.callback(stack.stop)
            stack.start()
            stack.wait_ready(ready_s)
            farm = cls(with_url(settings, stack.redis_url))
            farm._owned = undo.pop_all()
        return farm

    def submit(
        self, prompt: str | Sequence[int], *, idempotency_key: str | None = None, **params: Unpack[Params]
    ) -> Job:
        """Enqueue a prompt: text, or token ids. Once this returns, the job will be answered.

        idempotency_key: the same key and request again give the same job, whenever they are sent within its retention.
        Raises InvalidRequest, PromptTooLong; IdempotencyConflict for the key with another request; ServerFull;
        ServerUnreachable (the job may or may not be there: with a key it is safe to submit it again).
        """
        with self.ledger.in_time():
            submission = self.placer(params)({"prompt": prompt, "idempotency_key": idempotency_key})
            self.ledger.submit([submission])
        return Job(self, submission.id)

    def submit_many(self, prompts: Iterable[Prompt], *, n: int = 1, **params: Unpack[Params]) -> list[Job]:
        """Enqueue many prompts: texts, lists of token ids, or mappings of a request's own fields.

        A mapping may hold an ``idempotency_key``. n: samples of each prompt, beside one another in the answer.
        All are checked before the first is sent. Raises like ``submit``, naming the prompt's place in the list.
        """
        check_samples(n)
        place = self.placer(params)
        submissions = []
        for index, prompt in enumerate(prompts):
            try:
                submissions += place.samples(prompt, n)
            except InvalidRequest as error:
                raise type(error)(f"prompts[{index}].{error.field}", error.problem) from None
        self.ledger.submit(submissions)
        return [Job(self, submission.id) for submission in submissions]

    def generate(
        self, prompt: str | Sequence[int], *, timeout: float | None = None, **params: Unpack[Params]
    ) -> Completion:
        """Submit a prompt and wait for its completion. Raises like ``submit`` and ``Job.result``.

        timeout: for the wait, once the job is submitted.
        """
        return self.submit(prompt, **params).result(timeout)

    def job(self, job_id: str) -> Job:
        """A job by its id, wherever it was submitted. Does not ask the server."""
        return Job(self, job_id)

    def jobs(self, *, state: JobState | str | None = None, limit: int | None = None) -> Iterator[JobView]:
        """This tenant's jobs as they stand, the newest first; those in ``state``, ``limit`` at the most.

        They are read a page at a time, as the caller goes on. Raises InvalidRequest, ServerUnreachable.
        """
        return each_job(self.ledger, self.tenant, state=state, limit=limit)

    def usage(self, days: int = 30) -> list[UsageDay]:
        """This tenant's jobs that ended and their tokens, of the latest days, the oldest first; see ``UsageDay``."""
        return read_usage(self.ledger, self.tenant, days=days)

    @overload
    def map(
        self,
        prompts: Iterable[Prompt],
        *,
        window: int = ...,
        return_exceptions: Literal[False] = ...,
        **params: Unpack[Params],
    ) -> Iterator[Completion]: ...
    @overload
    def map(
        self,
        prompts: Iterable[Prompt],
        *,
        window: int = ...,
        return_exceptions: Literal[True],
        **params: Unpack[Params],
    ) -> Iterator[Completion | FarmError]: ...
    def map(
        self,
        prompts: Iterable[Prompt],
        *,
        window: int = DEFAULT_WINDOW,
        return_exceptions: bool = False,
        **params: Unpack[Params],
    ) -> Iterator[Completion | FarmError]:
        """Completions of many prompts, in their order, in bounded memory; the prompts may be endless.

        window: most jobs between submission and delivery. return_exceptions: deliver errors in their places rather than
        raise the first one. Prompts are drawn in the caller's thread. Leaving the loop early, by break or by an error,
        cancels the jobs that were submitted and not delivered; a ``map`` kept in a name has a ``close`` for that.
        Raises like ``submit`` and ``Job.result``; rides out outages up to ``client.outage_s``.
        """
        return deliver(self._flow(prompts, window, True, params), return_exceptions)

    @overload
    def as_completed(
        self,
        prompts: Iterable[Prompt | Job],
        *,
        window: int = ...,
        return_exceptions: Literal[False] = ...,
        **params: Unpack[Params],
    ) -> Iterator[Completion]: ...
    @overload
    def as_completed(
        self,
        prompts: Iterable[Prompt | Job],
        *,
        window: int = ...,
        return_exceptions: Literal[True],
        **params: Unpack[Params],
    ) -> Iterator[Completion | FarmError]: ...
    def as_completed(
        self,
        prompts: Iterable[Prompt | Job],
        *,
        window: int = DEFAULT_WINDOW,
        return_exceptions: bool = False,
        **params: Unpack[Params],
    ) -> Iterator[Completion | FarmError]:
        """Like ``map``, but each as soon as it is there. Takes jobs beside prompts; those are never cancelled.

        Tell them apart by ``id``, or by ``metadata`` given with each prompt.
        """
        return deliver(self._flow(prompts, window, False, params), return_exceptions)

    def dead(self, *, limit: int = 100, model: str | None = None, tenant: str | None = None) -> list[JobView]:
        """Jobs that are dead, the latest first: of a model, of a tenant; all if not said. ``Job.retry`` revives one.

        Raises ServerUnreachable.
        """
        views = self.ledger.views(dead_ids(self.ledger, limit=limit, model=model, tenant=tenant))
        return [view for view in views if view is not None]

    def watching(
        self, job_ids: Iterable[str], *, start: int | None = None, asked: Callable[[], object] | None = None
    ) -> AbstractContextManager[SimpleQueue[tuple[str, News]]]:
        """News of jobs in a queue, for as long as the block lasts; see ``Reader.watching``."""
        return self.reader.watching(job_ids, start=start, asked=asked)

    def patiently(self, call: Callable[[], T]) -> T:
        """Make a call that may be made twice, and ride out an outage of up to ``client.outage_s``.

        A server that has never answered is no outage: then it fails at once. Raises ServerUnreachable, ServerFull.
        """
        return patiently(call, self.settings.client.outage_s if self.ledger.has_answered else 0.0)

    def send(self, submissions: Sequence[Submission]) -> tuple[list[str], dict[str, FarmError]]:
        """Submit, riding out an outage. Returns the ids of jobs that are new, and those refused with the reason."""
        try:
            words = self.patiently(partial(self.ledger.submit, submissions))
        except (IdempotencyConflict, ExceedsQuota, DeadlineUnmeetable) as error:
            if len(submissions) == 1:
                return [], {submissions[0].id: error}
            # Each by itself tells which one it is, or fits; those that are written already stay as they are.
            answers = [self.send([submission]) for submission in submissions]
            new = [job_id for ids, _ in answers for job_id in ids]
            return new, {job_id: error for _, refused in answers for job_id, error in refused.items()}
        return [job.id for job, is_new in zip(submissions, words, strict=True) if is_new], {}

    def abandon(self, job_ids: Iterable[str]) -> None:
        """Cancel jobs that nobody waits for any more, if the server can be asked within a few seconds."""
        if not (wanted := list(job_ids)):
            return
        with self._parting:
            with suppress(ServerUnreachable):
                patiently(partial(self.ledger.cancel, wanted), self.settings.redis.timeout_s)
            if self._is_closed:
                self.ledger.client.close()

    def close(self) -> None:
        """Let go of connections, and cancel what a ``map`` has in flight. Other jobs run on.

        Whoever waits in another thread gets a FarmError. A farm that ``local`` started is stopped; what it had accepted
        goes on when a farm is started there again.
        """
        self.reader.close()
        for flight in list(self.flights):
            flight.leave()
        with self._parting:
            self._is_closed = True
            self.ledger.client.close()
        self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Farm({self.ledger.where!r}, tenant={self.tenant!r})"

    def placer(self, params: Mapping[str, object]) -> Placer:
        """What turns prompts that share these fields into submissions of this client's tenant."""
        return Placer(self.ledger, self.prompts, self.tenant, params)

    def _flow(
        self, prompts: Iterable[Prompt | Job], window: int, is_ordered: bool, params: Params
    ) -> Generator[Result, None, None]:
        return run(self, Flow(window, is_ordered), self.placer(params), iter(prompts))
