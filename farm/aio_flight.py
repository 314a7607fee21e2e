"""Driving a ``map`` from an event loop; see ``farm.flight``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, ParamSpec

from farm.aio_job import AsyncJob
from farm.errors import FarmError
from farm.flight import DRAW_S, Flight, draw
from farm.flow import Flow, Result
from farm.ledger.watch import News, Tell
from farm.prompts import Placer, Prompt

if TYPE_CHECKING:
    from farm.aio import AsyncFarm

P = ParamSpec("P")
Inbox = asyncio.Queue[tuple[str, News]]


async def run(farm: AsyncFarm, flow: Flow, place: Placer, source: Source) -> AsyncGenerator[Result, None]:
    """Results as ``flow`` has them ready. Leaving it early, by whatever way, ends the flight."""
    inbox: Inbox = asyncio.Queue()
    flight = Flight(farm.sync, flow, place, teller(inbox))
    drawing: asyncio.Task[tuple[list[Prompt | AsyncJob], bool]] | None = None
    hearing: asyncio.Task[tuple[str, News]] | None = None
    is_drained = False

    async def hear(job_id: str, news: News) -> None:
        if (lost := flight.hear(job_id, news)) is not None:
            await farm.work(flight.resend, lost)

    try:
        while True:
            if drawing is None and not is_drained and (wanted := flow.wants):
                drawing = asyncio.create_task(source.draw(wanted))
            hearing = hearing or asyncio.create_task(inbox.get())
            await asyncio.wait({task for task in (drawing, hearing) if task}, return_when=asyncio.FIRST_COMPLETED)
            if drawing is not None and drawing.done():
                items, is_drained = drawing.result()
                drawing = None
                prompts = [item for item in items if not isinstance(item, AsyncJob)]
                await farm.work(flight.board, prompts, [item.id for item in items if isinstance(item, AsyncJob)])
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
        await farm.leave(flight)


async def deliver(flow: AsyncGenerator[Result, None], return_exceptions: bool) -> AsyncGenerator[Result, None]:
    """Results, with errors in their places if ``return_exceptions``, else up to the first one, which is raised."""
    async with aclosing(flow):
        async for result in flow:
            if isinstance(result, FarmError) and not return_exceptions:
                raise result
            yield result


class Source:
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


def teller(inbox: Inbox) -> Tell:
    """What puts news into a queue of the running loop, from any thread."""
    return soon(lambda job_id, news: inbox.put_nowait((job_id, news)))


def soon(call: Callable[P, object]) -> Callable[P, None]:
    """The call, made in the running loop soon after it is asked for from any thread."""
    loop = asyncio.get_running_loop()

    def ask(*args: P.args, **_none: P.kwargs) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(call, *args)

    return ask
