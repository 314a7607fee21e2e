"""The handle on one job for asyncio; see ``farm.job``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import TYPE_CHECKING

from farm.contracts import JobState
from farm.errors import FarmError
from farm.flow import result_of
from farm.job import ASK_S, Job, check_start, delta_of, piece_of
from farm.ledger.watch import News
from farm.results import Completion, Delta, JobView

if TYPE_CHECKING:
    from farm.aio import AsyncFarm


class AsyncJob:
    """One submitted prompt; see ``farm.job.Job``. Two of the same id are equal."""

    __slots__ = ("farm", "id")

    def __init__(self, farm: AsyncFarm, job_id: str) -> None:
        self.farm = farm
        self.id = job_id

    async def status(self) -> JobView:
        """How the job stands, its text so far, its place in line. Raises JobNotFound, JobGone, ServerUnreachable."""
        return await self.farm.call(self._sync.status)

    async def result(self, timeout: float | None = None) -> Completion:
        """Wait for the completion, at most ``timeout`` seconds; a waiter costs no thread. Raises like ``Job.result``.

        Cancelling the waiting task leaves the job running.
        """
        result = result_of(await (self._last_news() if timeout is None else self._last_news_within(timeout)))
        if isinstance(result, FarmError):
            raise result
        return result

    async def stream(self, start: int = 0) -> AsyncGenerator[Delta, None]:
        """The text as it is generated, from token index ``start`` on; see ``Job.stream``."""
        check_start(start)
        async with self.farm.watching([self.id], start=start) as inbox:
            while True:
                _, news = await inbox.get()
                piece = piece_of(news)
                if delta := delta_of(piece):
                    yield delta
                if piece.state.is_terminal:
                    break
        if piece.state is not JobState.SUCCEEDED:
            raise await self.farm.work(self._sync.not_succeeded)

    async def cancel(self) -> JobState:
        """End the job unless it has ended. Returns its state then. Raises JobNotFound, JobGone, ServerUnreachable."""
        return await self.farm.call(self._sync.cancel)

    async def retry(self, *, fresh: bool = False) -> None:
        """Queue the job again although it is dead; see ``Job.retry``."""
        await self.farm.call(self._sync.retry, fresh=fresh)

    async def purge(self) -> None:
        """Delete the job, which is dead, with all that is known of it; see ``Job.purge``."""
        await self.farm.call(self._sync.purge)

    async def _last_news(self) -> News:
        async with self.farm.watching([self.id]) as inbox:
            return (await inbox.get())[1]

    async def _last_news_within(self, timeout: float) -> News:
        clock = asyncio.get_running_loop().time
        until = clock() + timeout
        asked = asyncio.Event()
        async with self.farm.watching([self.id], asked=asked.set) as inbox:
            try:
                with suppress(TimeoutError):
                    await asyncio.wait_for(asked.wait(), ASK_S)
                # wait_for takes nothing from a queue in no time, even if there is something.
                left_s = until - clock()
                return (await asyncio.wait_for(inbox.get(), left_s) if left_s > 0 else inbox.get_nowait())[1]
            except (TimeoutError, asyncio.QueueEmpty):
                raise self._sync.timed_out(timeout) from None

    @property
    def _sync(self) -> Job:
        return Job(self.farm.sync, self.id)

    def __repr__(self) -> str:
        return f"AsyncJob({self.id!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsyncJob) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)
