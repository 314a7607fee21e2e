"""Calls to the ledger for many requests at once: while one is on its way, whoever comes next waits for the next.

So a busy API makes few large calls and an idle one makes each at once. Calls run on a thread of their own: the ledger's
client blocks, and handing work to one thread costs half of what it costs to hand it to several.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="api-batch")
        self._most = most
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._is_out = False

    async def __call__(self, item: T) -> R:
        """The answer to one item."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[R] = loop.create_future()
        self._waiting.append((item, answer))
        if not self._is_out:
            self._is_out = True
            loop.call_soon(self._send)  # what is read in this turn of the loop goes along
        return await answer

    def close(self) -> None:
        """Let go of the thread, once its call is done."""
        self._thread.shutdown()

    def _send(self) -> None:
        batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        items = [item for item, answer in batch if not answer.done()]
        loop = asyncio.get_running_loop()
        sent = loop.run_in_executor(self._thread, self._call, items)
        answers = [answer for _, answer in batch if not answer.done()]
        sent.add_done_callback(lambda done: self._receive(answers, done))

    def _receive(self, answers: list[asyncio.Future[R]], done: asyncio.Future[Sequence[R | Exception]]) -> None:
        error = done.exception()
        results: Sequence[R | BaseException] = [error] * len(answers) if error else done.result()
        for answer, result in zip(answers, results, strict=True):
            if answer.done():
                continue  # whoever asked is gone
            if isinstance(result, BaseException):
                answer.set_exception(result)
            else:
                answer.set_result(result)
        if self._waiting:
            self._send()
        else:
            self._is_out = False
