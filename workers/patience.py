"""Bearing a server that does not answer: what a worker has to say of its jobs is said until it was heard."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from farm.errors import ServerUnreachable
from farm.patience import FIRST_PAUSE_S, longer

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Patience:
    """How long one worker bears it: for good, until ``limit`` or ``end`` is called. Thread-safe."""

    def __init__(self) -> None:
        self._give_up_at = math.inf
        self._ended = threading.Event()

    def limit(self, seconds: float) -> None:
        """From now on, wait for so long and no longer."""
        self._give_up_at = time.monotonic() + seconds

    def end(self) -> None:
        """Wait no more."""
        self._ended.set()

    def until_answered(self, call: Callable[[], T]) -> T:
        """Make a call that may be made twice until the server answers. Raises ServerUnreachable when it is over."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return call()
            except ServerUnreachable as error:
                if pause_s == FIRST_PAUSE_S:
                    log.warning("waiting_for_server", error=str(error))
                if time.monotonic() >= self._give_up_at or self._ended.wait(pause_s):
                    raise
                pause_s = longer(pause_s)
