"""Short calls from an event loop: a few threads that make them, so that no caller waits longer than a call may take.

While the server answers, calls wait for a thread as long as it takes. Once it is silent, those that waited behind
others have their time counted from when they were made: all end together and not one after another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from farm.errors import ServerUnreachable
from farm.time_limit import time_limit

T = TypeVar("T")


class Calls:
    """Threads for calls that take ``limit_s`` at most."""

    def __init__(self, threads: int, limit_s: float, name: str) -> None:
        self._limit_s = limit_s
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._is_silent = False

    async def run(self, call: Callable[[], T]) -> T:
        """Make a call in a thread. Raises what it raises; ServerUnreachable when its time is up."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._make, call, time.monotonic())

    def close(self) -> None:
        """Wait for the calls that are being made, and let go of the threads."""
        self._threads.shutdown()

    def _make(self, call: Callable[[], T], called_at: float) -> T:
        try:
            with time_limit(self._limit_s, called_at if self._is_silent else None):
                result = call()
        except ServerUnreachable:
            self._is_silent = True
            raise
        self._is_silent = False
        return result
