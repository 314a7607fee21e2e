"""The farm for asyncio: the names of ``farm.client``, awaitable.

    async with AsyncFarm() as farm:
        print((await farm.generate("Once upon a time", max_tokens=32)).text)

Calls to the ledger run on a few threads; waiting takes none: the one reader's thread wakes the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from itertools import islice
from typing import Any, Literal, ParamSpec, Self, TypeVar, Unpack, overload

from farm.calls import Calls
from farm.client import DRAW_S, Farm, Job, check_start, delta_of, draw
from farm.contracts import JobState
from farm.errors import FarmError, ServerUnreachable
from farm.flow import DEFAULT_WINDOW, Flow, Result, not_succeeded, result_of
from farm.ledger.jobs import Piece
from farm.ledger.streams import News, Watch
from farm.ledger.usage import UsageDay
from farm.patience import patiently
from farm.prompts import Params, Placer, Prompt
from farm.results import Completion, Delta, JobView
from farm.settings import Settings

THREADS = 4
PAGE = 100

P = ParamSpec("P")
T = TypeVar("T")
Inbox = asyncio.Queue[tuple[str, News]]


class AsyncJob:
    """One submitted prompt; see ``farm.client.Job``. Two of the same id are equal."""

    __slots__ = ("farm", "id")

    def __init__(self, farm: AsyncFarm, job_id: str) -> None:
        self.farm = farm
        self.id = job_id

    async def status(self) -> JobView:
        """How the job stands, its text so far, its place in line. Raises JobNotFound, JobGone, ServerUnreachable."""
        return await self.farm.call(Job(self.farm.sync, self.id).status)

    async def result(self, timeout: float | None = None) -> Completion:
        """Wait for the completion, at most ``timeout`` seconds; a waiter costs no thread. Raises like ``Job.result``.

        Cancelling the waiting task leaves the job running.
        """
        async with self.farm.watching([self.id]) as inbox:
            try:
                _, news = await asyncio.wait_for(inbox.get(), timeout)
            except TimeoutError:
                raise TimeoutError(
                    f"job {self.id} has not ended within {timeout:g} s; it runs on: wait again, or cancel it"
                ) from None
        result = result_of(news)
        if isinstance(result, FarmError):
            raise result
        return result

    async def stream(self, start: int = 0) -> AsyncGenerator[Delta, None]:
        """The text as it is generated, from token index ``start`` on; see ``Job.stream``."""
        check_start(start)
        async with self.farm.watching([self.id], start=start) as inbox:
            while True:
                _, news = await inbox.get()
                if isinstance(news, FarmError):
                    raise news
                assert isinstance(news, Piece)
                if delta := delta_of(news):
                    yield delta
                if news.state.is_terminal:
                    break
        if news.state is not JobState.SUCCEEDED:
            raise not_succeeded(await self.farm.call(self.farm.sync.ledger.view, self.id))

    async def cancel(self) -> JobState:
        """End the job unless it has ended. Returns its state then. Raises JobNotFound, JobGone, ServerUnreachable."""
        return await self.farm.call(Job(self.farm.sync, self.id).cancel)

    def __repr__(self) -> str:
        return f"AsyncJob({self.id!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsyncJob) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)


class AsyncFarm:
    """A connection to a farm, for one event loop. Close it, or use it in an ``async with``."""

    def __init__(self, settings: Settings | None = None, *, url: str | None = None, tenant: str | None = None) -> None:
        """See ``Farm``. Nothing is sent yet."""
        self.sync = Farm(settings, url=url, tenant=tenant)
        self.settings = self.sync.settings
        self._calls = Calls(THREADS, self.settings.redis.timeout_s, "farm-call")
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="farm-work")  # what may take long waits apart

    @classmethod
    @asynccontextmanager
    async def local(
        cls, settings: Settings | None = None, *, workers: int = 1, ready_s: float = 120.0
    ) -> AsyncGenerator[Self, None]:
        """A farm on this machine for as long as the block lasts; see ``Farm.local``."""
        sync = await asyncio.to_thread(partial(Farm.local, settings, workers=workers, ready_s=ready_s))
        try:
            async with cls(sync.settings) as farm:
                yield farm
        finally:
            await asyncio.to_thread(sync.close)

    async def submit(
        self, prompt: str | Sequence[int], *, idempotency_key: str | None = None, **params: Unpack[Params]
    ) -> AsyncJob:
        """Enqueue a prompt; see ``Farm.submit``. If the waiting task is cancelled, the job may be there."""
        job = await self.call(partial(self.sync.submit, prompt, idempotency_key=idempotency_key, **params))
        return AsyncJob(self, job.id)

    async def submit_many(self, prompts: Iterable[Prompt], *, n: int = 1, **params: Unpack[Params]) -> list[AsyncJob]:
        """Enqueue many prompts; see ``Farm.submit_many``."""
        jobs = await self._work(partial(self.sync.submit_many, prompts, n=n, **params))
        return [AsyncJob(self, job.id) for job in jobs]

    async def generate(
        self,
        prompt: str | Sequence[int],
        *,
        timeout: float | None = None,
        **params: Unpack[Params],
    ) -> Completion:
        """Submit a prompt and wait for its completion. Raises like ``submit`` and ``AsyncJob.result``."""
        job = await self.submit(prompt, **params)
        return await job.result(timeout)

    def job(self, job_id: str) -> AsyncJob:
        """A job by its id, wherever it was submitted. Does not ask the server."""
        return AsyncJob(self, job_id)

    async def jobs(
        self, *, state: JobState | str | None = None, limit: int | None = None
    ) -> AsyncGenerator[JobView, None]:
        """This tenant's jobs as they stand, the newest first; see ``Farm.jobs``."""
        found = self.sync.jobs(state=state, limit=limit)
        while page := await self.call(lambda: list(islice(found, PAGE))):
            for view in page:
                yield view

    async def usage(self, days: int = 30) -> list[UsageDay]:
        """This tenant's usage by day; see ``Farm.usage``."""
        return await self.call(self.sync.usage, days)

    @overload
    def map(
        self,
        prompts: Iterable[Prompt] | AsyncIterable[Prompt],
        *,
        window: int = ...,
        return_exceptions: Literal[False] = ...,
        **params: Unpack[Params],
    ) -> AsyncGenerator[Completion, None]: ...
    @overload
    def map(
        self,
        prompts: Iterable[Prompt] | AsyncIterable[Prompt],
        *,
        window: int = ...,
        return_exceptions: Literal[True],
        **params: Unpack[Params],
    ) -> AsyncGenerator[Completion | FarmError, None]: ...
    def map(
        self,
        prompts: Iterable[Prompt] | AsyncIterable[Prompt],
        *,
        window: int = DEFAULT_WINDOW,
        return_exceptions: bool = False,
        **params: Unpack[Params],
    ) -> AsyncGenerator[Any, None]:
        """Completions of many prompts, in their order, in bounded memory; see ``Farm.map``."""
        return _deliver(self._flow(prompts, window, True, params), return_exceptions)

    @overload
    def as_completed(
        self,
        prompts: Iterable[Prompt | AsyncJob] | AsyncIterable[Prompt | AsyncJob],
        *,
        window: int = ...,
        return_exceptions: Literal[False] = ...,
        **params: Unpack[Params],
    ) -> AsyncGenerator[Completion, None]: ...
    @overload
    def as_completed(
        self,
        prompts: Iterable[Prompt | AsyncJob] | AsyncIterable[Prompt | AsyncJob],
        *,
        window: int = ...,
        return_exceptions: Literal[True],
        **params: Unpack[Params],
    ) -> AsyncGenerator[Completion | FarmError, None]: ...
    def as_completed(
        self,
        prompts: Iterable[Prompt | AsyncJob] | AsyncIterable[Prompt | AsyncJob],
        *,
        window: int = DEFAULT_WINDOW,
        return_exceptions: bool = False,
        **params: Unpack[Params],
    ) -> AsyncGenerator[Any, None]:
        """Like ``map``, but each as soon as it is there; see ``Farm.as_completed``."""
        return _deliver(self._flow(prompts, window, False, params), return_exceptions)

    @asynccontextmanager
    async def watching(self, job_ids: Iterable[str], *, start: int | None = None) -> AsyncIterator[Inbox]:
        """News of jobs in a queue: their ends, or with ``start`` their tokens from that index on."""
        inbox: Inbox = asyncio.Queue()
        tell = _teller(inbox)
        watches = [Watch(job_id, tell, start=start) for job_id in job_ids]
        try:
            await self.call(self.sync.reader.watch, watches)
            yield inbox
        finally:
            self.sync.reader.unwatch(watches)

    async def call(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a short call to the ledger on one of this client's threads. It ends within ``redis.timeout_s``."""
        return await self._calls.run(partial(call, *args, **kwargs))

    async def aclose(self) -> None:
        """Let go of threads and connections. Jobs run on."""
        await asyncio.to_thread(self._close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"Async{self.sync!r}"

    async def _work(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what may take long, or outlast an outage, on another thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **kwargs))

    def _close(self) -> None:
        self._calls.close()
        self._threads.shutdown()
        self.sync.close()

    def _flow(
        self,
        prompts: Iterable[Prompt | AsyncJob] | AsyncIterable[Prompt | AsyncJob],
        window: int,
        is_ordered: bool,
        params: Params,
    ) -> AsyncGenerator[Result, None]:
        return self._run_flow(Flow(window, is_ordered), self.sync.placer(params), _Source(prompts))

    async def _run_flow(self, flow: Flow, place: Placer, source: _Source) -> AsyncGenerator[Result, None]:
        inbox: Inbox = asyncio.Queue()
        tell = _teller(inbox)
        watches: dict[str, Watch] = {}
        own: set[str] = set()
        drawing: asyncio.Task[tuple[list[Prompt | AsyncJob], bool]] | None = None
        hearing: asyncio.Task[tuple[str, News]] | None = None
        is_drained = False

        async def watch(job_ids: Iterable[str]) -> None:
            new = {job_id: Watch(job_id, tell) for job_id in job_ids if job_id not in watches}
            watches.update(new)
            outage_s = self.settings.client.outage_s
            await self._work(patiently, partial(self.sync.reader.watch, list(new.values())), outage_s)

        async def hear(job_id: str, news: News) -> None:
            watches.pop(job_id, None)
            own.discard(job_id)
            if (lost := flow.hear(job_id, news)) is not None:
                own.update((await self._work(self.sync.send, [lost]))[0])
                await watch([job_id])

        try:
            while True:
                if drawing is None and not is_drained and (wanted := flow.wants):
                    drawing = asyncio.create_task(source.draw(wanted))
                hearing = hearing or asyncio.create_task(inbox.get())
                await asyncio.wait({task for task in (drawing, hearing) if task}, return_when=asyncio.FIRST_COMPLETED)
                if drawing is not None and drawing.done():
                    items, is_drained = drawing.result()
                    drawing = None
                    flow.adopt(item.id for item in items if isinstance(item, AsyncJob))
                    prompts = [item for item in items if not isinstance(item, AsyncJob)]
                    new, refused = await self._work(
                        self.sync.send, flow.admit(await self._work(place.attempt, prompts))
                    )
                    own.update(new)
                    flow.refuse(refused)
                    await watch(flow.flying)
                if hearing.done():
                    await hear(*hearing.result())
                    hearing = None
                    while not inbox.empty():
                        await hear(*inbox.get_nowait())
                for result in flow.ready():
                    yield result
                if is_drained and flow.is_empty:
                    return
        finally:
            for task in (drawing, hearing):
                if task is not None:
                    task.cancel()
            source.close()
            self.sync.reader.unwatch(watches.values())
            if own:
                with suppress(ServerUnreachable):
                    await self._work(self.sync.ledger.cancel, list(own))


class _Source:
    """Prompts to draw from, whether their iterator is an asynchronous one or not."""

    def __init__(self, prompts: Iterable[Prompt | AsyncJob] | AsyncIterable[Prompt | AsyncJob]) -> None:
        self._slow = aiter(prompts) if isinstance(prompts, AsyncIterable) else None
        self._quick = iter(()) if isinstance(prompts, AsyncIterable) else iter(prompts)
        self._next: asyncio.Future[Prompt | AsyncJob] | None = None

    async def draw(self, most: int) -> tuple[list[Prompt | AsyncJob], bool]:
        """Up to ``most`` items, fewer from a slow source. Returns whether it has no more."""
        if self._slow is None:
            return draw(self._quick, most)
        items: list[Prompt | AsyncJob] = []
        while len(items) < most:
            self._next = self._next or asyncio.ensure_future(anext(self._slow))
            done, _ = await asyncio.wait({self._next}, timeout=DRAW_S if items else None)
            if not done:
                return items, False
            drawn, self._next = self._next, None
            try:
                items.append(drawn.result())
            except StopAsyncIteration:
                return items, True
        return items, False

    def close(self) -> None:
        """Draw no more."""
        if self._next is not None:
            self._next.cancel()


def _teller(inbox: Inbox) -> Callable[[str, News], None]:
    loop = asyncio.get_running_loop()

    def tell(job_id: str, news: News) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(inbox.put_nowait, (job_id, news))

    return tell


async def _deliver(flow: AsyncGenerator[Result, None], return_exceptions: bool) -> AsyncGenerator[Any, None]:
    async with aclosing(flow):
        async for result in flow:
            if isinstance(result, FarmError) and not return_exceptions:
                raise result
            yield result
