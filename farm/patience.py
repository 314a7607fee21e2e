"""Bearing a server that does not answer: pauses that grow, up to a limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from farm.errors import FarmError, QueueFull, QuotaExceeded, ServerFull, ServerUnreachable

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0

T = TypeVar("T")


def patiently(call: Callable[[], T], outage_s: float, on_wait: Callable[[FarmError], None] | None = None) -> T:
    """Make a call that may be made twice until the server answers; give up after ``outage_s`` seconds of silence.

    A queue that is full is no silence: there will be room, so it is waited for however long that takes.
    on_wait: told of each failure that another try follows. Raises ServerUnreachable, ServerFull.
    """
    pause = threading.Event()
    pause_s, deadline = FIRST_PAUSE_S, time.monotonic() + outage_s
    while True:
        try:
            return call()
        except (ServerUnreachable, ServerFull) as error:
            if time.monotonic() + pause_s > deadline:
                raise
            failure: FarmError = error
        except (QuotaExceeded, QueueFull) as error:
            deadline = time.monotonic() + outage_s
            failure = error
        if on_wait is not None:
            on_wait(failure)
        pause.wait(pause_s)
        pause_s = longer(pause_s)


def longer(pause_s: float) -> float:
    """The pause after this one."""
    return min(LONGEST_PAUSE_S, 2 * pause_s)
