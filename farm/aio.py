"""The farm for asyncio: the names of ``farm.client``, awaitable.

    async with AsyncFarm() as farm:
        print((await farm.generate("Once upon a time", max_tokens=32)).text)

Calls to the ledger run on a few threads; waiting takes none: the one reader's thread wakes the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from typing import Any, Literal, ParamSpec, Self, TypeVar, Unpack, overload

from farm.aio_flight import Inbox, Source, deliver, run, soon, teller
from farm.aio_job import AsyncJob
from farm.calls import Calls
from farm.client import Farm
from farm.contracts import JobState
from farm.errors import FarmError
from farm.flight import Flight
from farm.flow import DEFAULT_WINDOW, Flow, Result
from farm.ledger.usage import UsageDay
from farm.ledger.watch import Watch
from farm.prompts import Params, Prompt
from farm.results import Completion, JobView
from farm.settings import Settings

THREADS = 4
PAGE = 100

P = ParamSpec("P")
T = TypeVar("T")


class AsyncFarm:
    """A connection to a farm, for one event loop. Close it, or use it in an ``async with``."""

    def __init__(self, settings: Settings | None = None, *, url: str | None = None, tenant: str | None = None) -> None:
        """See ``Farm``. Nothing is sent yet."""
        self.sync = Farm(settings, url=url, tenant=tenant)
        self.settings = self.sync.settings
        self._calls = Calls(THREADS, self.settings.redis.timeout_s, "farm-call")
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="farm-work")  # what may take long waits apart
        self._is_closed = False

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
        jobs = await self.work(partial(self.sync.submit_many, prompts, n=n, **params))
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
        return deliver(self._flow(prompts, window, True, params), return_exceptions)

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
        return deliver(self._flow(prompts, window, False, params), return_exceptions)

    async def dead(self, *, limit: int = 100, model: str | None = None, tenant: str | None = None) -> list[JobView]:
        """Jobs that are dead, the latest first; see ``Farm.dead``."""
        return await self.call(self.sync.dead, limit=limit, model=model, tenant=tenant)

    @asynccontextmanager
    async def watching(
        self, job_ids: Iterable[str], *, start: int | None = None, asked: Callable[[], object] | None = None
    ) -> AsyncIterator[Inbox]:
        """News of jobs in a queue; see ``Reader.watching``. ``asked`` is called in the event loop."""
        inbox: Inbox = asyncio.Queue()
        tell = teller(inbox)
        watches = [Watch(job_id, tell, start=start) for job_id in job_ids]
        try:
            self.sync.reader.ask(watches, soon(asked) if asked else None)
            yield inbox
        finally:
            self.sync.reader.unwatch(watches)

    async def call(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a short call to the ledger on one of this client's threads. It ends within ``redis.timeout_s``."""
        return await self._calls.run(partial(call, *args, **kwargs))

    async def work(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what may take long, or outlast an outage, on another thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **kwargs))

    async def leave(self, flight: Flight) -> None:
        """End what a ``map`` has in flight."""
        if not self._is_closed:  # else closing does it
            await self.work(flight.leave)

    async def aclose(self) -> None:
        """Let go of threads and connections, and cancel what a ``map`` has in flight. Other jobs run on."""
        self._is_closed = True
        await asyncio.to_thread(self._close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"Async{self.sync!r}"

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
        return run(self, Flow(window, is_ordered), self.sync.placer(params), Source(prompts))
