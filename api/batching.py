"""Calls to the ledger for many requests at once: while one is on its way, whoever comes next waits for the next.

So a busy API makes few large calls and an idle one makes each at once. They run on a thread of their own, since the
ledger's client blocks; a queue costs half of what an executor does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Gathers items for ``call``, which answers each in order: with a result, or an exception for that item alone.

    What ``call`` raises is raised for all of its items. For one event loop.
    """

    def __init__(self, call: Callable[[list[T]], Sequence[R | Exception]], most: int) -> None:
        """most: items of one call."""
        self._call = call
        self._most = most
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._is_out = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._work: SimpleQueue[list[tuple[T, asyncio.Future[R]]]] = SimpleQueue()
        self._thread = Thread(target=self._run, name="api-batch", daemon=True)

    async def __call__(self, item: T) -> R:
        """The answer to one item."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._thread.start()
        answer: asyncio.Future[R] = self._loop.create_future()
        self._waiting.append((item, answer))
        if not self._is_out:
            self._is_out = True
            self._loop.call_soon(self._send)  # what is read in this turn of the loop goes along
        return await answer

    def close(self) -> None:
        """End the thread, once its call is done."""
        self._work.put([])
        if self._loop is not None:
            self._thread.join()

    def _send(self) -> None:
        wanted = [(item, answer) for item, answer in self._waiting if not answer.done()]
        batch, self._waiting = wanted[: self._most], wanted[self._most :]
        if batch:
            self._work.put(batch)
        else:
            self._is_out = False

    def _receive(self, batch: list[tuple[T, asyncio.Future[R]]], results: Sequence[R | Exception]) -> None:
        for (_, answer), result in zip(batch, results, strict=True):
            if answer.done():
                continue  # whoever asked is gone
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)
        self._send()

    # The thread.

    def _run(self) -> None:
        assert self._loop is not None
        while batch := self._work.get():
            try:
                results = self._call([item for item, _ in batch])
            except Exception as error:
                results = [error] * len(batch)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._receive, batch, results)
