"""News of jobs for those who wait for them in this process: streams and long polls.

The ledger's one reader tells from its own thread; the loop is woken once for all that came meanwhile. Waiting costs no
thread, no task and no question to the server.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from api.errors import StreamsFull
from farm.ledger.streams import Reader
from farm.ledger.watch import News, Watch


class Listener:
    """Somebody who waits for one job's news. For the event loop."""

    __slots__ = ("_heard", "_waiting", "is_over", "watch")

    def __init__(self) -> None:
        self.watch: Watch | None = None
        self.is_over = False
        """Set when there is no more to wait for: the client is gone, or the server stops."""
        self._heard: list[News] = []
        self._waiting: asyncio.Future[None] | None = None

    async def next(self, timeout_s: float) -> list[News]:
        """What was heard since the last time; waits for it. Empty after ``timeout_s``, and once all is over."""
        if not self._heard and not self.is_over:
            loop = asyncio.get_running_loop()
            self._waiting = loop.create_future()
            timer = loop.call_later(timeout_s, self.wake)
            try:
                await self._waiting
            finally:
                timer.cancel()
                self._waiting = None
        heard, self._heard = self._heard, []
        return heard

    def hear(self, news: News) -> None:
        self._heard.append(news)
        self.wake()

    def leave(self) -> None:
        """There is no more to wait for."""
        self.is_over = True
        self.wake()

    def wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class Newsroom:
    """All who wait in this process, for one event loop."""

    def __init__(self, reader: Reader, watch: Callable[[Watch], Awaitable[None]], most: int) -> None:
        """watch: puts a watch on the reader's list. most: how many may wait at once."""
        self._reader = reader
        self._watch = watch
        self._most = most
        self.listeners: set[Listener] = set()
        """For reading only."""
        self._post: deque[tuple[Listener, News]] = deque()
        self._is_woken = False
        self._is_stopping = False

    @asynccontextmanager
    async def listening(self, job_id: str, start: int | None = None) -> AsyncIterator[Listener]:
        """Listen for a job's end or, with ``start``, for its tokens from that index on; see ``farm.ledger.streams``.

        Raises StreamsFull, ServerUnreachable.
        """
        listener = await self.enter(job_id, start)
        try:
            yield listener
        finally:
            self.exit(listener)

    async def enter(self, job_id: str, start: int | None = None, restarts: int | None = None) -> Listener:
        """Begin to listen. Raises StreamsFull, ServerUnreachable."""
        if len(self.listeners) >= self._most:
            raise StreamsFull(f"{self._most:,} requests wait for news here already; try again, or ask without waiting")
        listener = Listener()
        loop = asyncio.get_running_loop()

        def tell(_job_id: str, news: News) -> None:
            self._post.append((listener, news))
            if not self._is_woken:
                self._is_woken = True
                with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(self._deliver)

        listener.watch = Watch(job_id, tell, start=start, restarts=restarts)
        self.listeners.add(listener)
        try:
            await self._watch(listener.watch)
        except BaseException:
            self.exit(listener)
            raise
        if self._is_stopping:
            listener.leave()
        return listener

    def exit(self, listener: Listener) -> None:
        """Listen no more. May be called twice."""
        listener.leave()
        self.listeners.discard(listener)
        if listener.watch is not None:
            self._reader.unwatch([listener.watch])

    def stop(self) -> None:
        """Send everybody home: the server stops, and they can ask another."""
        self._is_stopping = True
        for listener in list(self.listeners):
            listener.leave()

    @property
    def is_stopping(self) -> bool:
        return self._is_stopping

    def _deliver(self) -> None:
        self._is_woken = False  # first: what is posted from here on wakes the loop again
        while self._post:
            listener, news = self._post.popleft()
            listener.hear(news)
