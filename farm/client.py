"""The farm for Python programs: submit prompts, wait for, stream and cancel jobs.

    from farm import Farm

    with Farm() as farm:
        print(farm.generate("Once upon a time", max_tokens=32).text)

It knows the ledger and nothing of Celery or models. A ``Farm`` may be shared by threads; make one per process.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, Literal, Self, TypeVar, Unpack, overload

from farm.contracts import JobState
from farm.errors import (
    DeadlineUnmeetable,
    ExceedsQuota,
    FarmError,
    IdempotencyConflict,
    InvalidRequest,
    ServerUnreachable,
)
from farm.flow import DEFAULT_WINDOW, Flow, Result, not_succeeded, result_of
from farm.ledger.jobs import Jobs, Piece, Submission
from farm.ledger.listing import each_job
from farm.ledger.streams import News, Reader, Watch
from farm.ledger.usage import UsageDay, read_usage
from farm.local.discover import discover, running_farm, with_url
from farm.patience import patiently
from farm.prompts import Params, Placer, Prompt, PromptCheck, check_samples
from farm.results import Completion, Delta, JobView
from farm.settings import Settings, load_settings

DRAW_S = 0.05  # a slow source of prompts must not hold up those drawn already

T = TypeVar("T")


class Job:
    """One submitted prompt. Two of the same id are equal; it may be used from any thread and process."""

    __slots__ = ("farm", "id")

    def __init__(self, farm: Farm, job_id: str) -> None:
        self.farm = farm
        self.id = job_id

    def status(self) -> JobView:
        """How the job stands, its text so far, its place in line. Raises JobNotFound, JobGone, ServerUnreachable."""
        with self.farm.ledger.in_time():
            return self.farm.ledger.view(self.id, with_position=True)

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the completion, at most ``timeout`` seconds.

        Raises JobFailed, JobDead, JobExpired or JobCancelled, whose ``job`` holds the partial text and the history;
        TimeoutError (the job runs on); JobNotFound, JobGone; ServerUnreachable if the server can't be asked at first or
        is silent for ``client.outage_s``.
        """
        with self.farm.watching([self.id]) as inbox:
            try:
                _, news = inbox.get(timeout=None if timeout is None else max(0.0, timeout))
            except Empty:
                raise TimeoutError(
                    f"job {self.id} has not ended within {timeout:g} s; it runs on: wait again, or cancel it"
                ) from None
        result = result_of(news)
        if isinstance(result, FarmError):
            raise result
        return result

    def stream(self, start: int = 0) -> Iterator[Delta]:
        """The text as it is generated, from token index ``start`` on; ends with the job.

        No text is missed or repeated when workers die. Raises like ``result`` when the job does not succeed.
        """
        check_start(start)
        with self.farm.watching([self.id], start=start) as inbox:
            while True:
                _, news = inbox.get()
                if isinstance(news, FarmError):
                    raise news
                assert isinstance(news, Piece)
                if delta := delta_of(news):
                    yield delta
                if news.state.is_terminal:
                    break
        if news.state is not JobState.SUCCEEDED:
            raise not_succeeded(self.farm.ledger.view(self.id))

    def cancel(self) -> JobState:
        """End the job unless it has ended. Returns its state then: ``cancelled``, or how it had ended before.

        Raises JobNotFound, JobGone, ServerUnreachable.
        """
        with self.farm.ledger.in_time():
            [state] = self.farm.ledger.cancel([self.id])
            return state or self.farm.ledger.view(self.id).state

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)


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
        """Submit a prompt and wait for its completion. Raises like ``submit`` and ``Job.result``."""
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
        raise the first one. Prompts are drawn in the caller's thread. Jobs in flight when the caller stops are
        cancelled.
        Raises like ``submit`` and ``Job.result``; rides out outages up to ``client.outage_s``.
        """
        return _deliver(self._flow(prompts, window, True, params), return_exceptions)

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
        return _deliver(self._flow(prompts, window, False, params), return_exceptions)

    @contextmanager
    def watching(self, job_ids: Iterable[str], *, start: int | None = None) -> Iterator[SimpleQueue[tuple[str, News]]]:
        """News of jobs in a queue: their ends, or with ``start`` their tokens from that index on."""
        inbox: SimpleQueue[tuple[str, News]] = SimpleQueue()
        watches = [Watch(job_id, lambda *news: inbox.put(news), start=start) for job_id in job_ids]
        try:
            with self.ledger.in_time():
                self.reader.watch(watches)
            yield inbox
        finally:
            self.reader.unwatch(watches)

    def send(self, submissions: Sequence[Submission]) -> tuple[list[str], dict[str, FarmError]]:
        """Submit, riding out an outage. Returns the ids of jobs that are new, and those refused with the reason."""
        outage_s = self.settings.client.outage_s
        try:
            words = patiently(partial(self.ledger.submit, submissions), outage_s)
        except (IdempotencyConflict, ExceedsQuota, DeadlineUnmeetable) as error:
            if len(submissions) == 1:
                return [], {submissions[0].id: error}
            # Each by itself tells which one it is, or fits; those that are written already stay as they are.
            answers = [self.send([submission]) for submission in submissions]
            new = [job_id for ids, _ in answers for job_id in ids]
            return new, {job_id: error for _, refused in answers for job_id, error in refused.items()}
        return [job.id for job, is_new in zip(submissions, words, strict=True) if is_new], {}

    def close(self) -> None:
        """Let go of connections. Jobs run on; whoever waits for one in another thread gets a FarmError.

        A farm that ``local`` started is stopped; what it had accepted goes on when a farm is started there again.
        """
        self.reader.close()
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
        return self._run_flow(Flow(window, is_ordered), self.placer(params), iter(prompts))

    def _run_flow(self, flow: Flow, place: Placer, source: Iterator[Prompt | Job]) -> Generator[Result, None, None]:
        inbox: SimpleQueue[tuple[str, News]] = SimpleQueue()
        watches: dict[str, Watch] = {}
        own: set[str] = set()
        is_drained = False

        def watch(job_ids: Iterable[str]) -> None:
            new = {job_id: Watch(job_id, lambda *news: inbox.put(news)) for job_id in job_ids if job_id not in watches}
            watches.update(new)
            patiently(partial(self.reader.watch, list(new.values())), self.settings.client.outage_s)

        def hear(job_id: str, news: News) -> None:
            watches.pop(job_id, None)
            own.discard(job_id)
            if (lost := flow.hear(job_id, news)) is not None:
                own.update(self.send([lost])[0])
                watch([job_id])

        try:
            while True:
                if not is_drained and (wanted := flow.wants):
                    items, is_drained = draw(source, wanted)
                    flow.adopt(item.id for item in items if isinstance(item, Job))
                    new, refused = self.send(
                        flow.admit(place.attempt(item for item in items if not isinstance(item, Job)))
                    )
                    own.update(new)
                    flow.refuse(refused)
                    watch(flow.flying)
                while not inbox.empty():
                    hear(*inbox.get())
                yield from flow.ready()
                if is_drained and flow.is_empty:
                    return
                if is_drained or not flow.wants:
                    hear(*inbox.get())
        finally:
            self.reader.unwatch(watches.values())
            with suppress(ServerUnreachable):
                self.ledger.cancel(list(own))


def delta_of(piece: Piece) -> Delta | None:
    """What a piece adds to a stream, if anything."""
    text = "".join(text for _, text in piece.tokens) + (piece.tail if piece.state.is_terminal else "")
    if not piece.tokens and not text:
        return None
    return Delta(text, piece.start + len(piece.tokens), [token for token, _ in piece.tokens])


def check_start(start: int) -> None:
    """Raise InvalidRequest for an index that no token can have."""
    if start < 0:
        raise InvalidRequest("start", f"{start} is out of range; give a token index, 0 or more")


def draw(source: Iterator[T], most: int) -> tuple[list[T], bool]:
    """Up to ``most`` items, fewer from a slow source. Returns whether it has no more."""
    items: list[T] = []
    until = time.monotonic() + DRAW_S
    for item in islice(source, most):
        items.append(item)
        if time.monotonic() > until:
            return items, False
    return items, len(items) < most


def _deliver(flow: Generator[Result, None, None], return_exceptions: bool) -> Iterator[Any]:
    try:
        for result in flow:
            if isinstance(result, FarmError) and not return_exceptions:
                raise result
            yield result
    finally:
        flow.close()
