"""How long everything that one call asks of the server may take together: connecting, asking, asking again.

A limit holds for the thread that set it and for the block below it. Nothing here knows Redis; ``farm.driver`` obeys.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class _Clock(threading.local):
    until: float | None = None


_clock = _Clock()


@contextmanager
def time_limit(seconds: float, since: float | None = None) -> Iterator[None]:
    """Let the block take so long in all. A limit around it that ends earlier stays.

    since: when the time began to run, by ``time.monotonic``; now unless given.
    """
    outer = _clock.until
    until = (time.monotonic() if since is None else since) + seconds
    _clock.until = until if outer is None else min(outer, until)
    try:
        yield
    finally:
        _clock.until = outer


def time_left() -> float | None:
    """Seconds until this thread's limit, 0 or less when it has passed; None where there is none."""
    return None if _clock.until is None else _clock.until - time.monotonic()
