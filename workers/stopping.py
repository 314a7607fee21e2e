"""How a worker is asked to end: once, it hands its jobs back; again, it does not wait.

Celery has a warm and a cold way, by which signal and how often. Here SIGTERM and SIGINT mean the same, since handing
back takes moments however long the jobs are.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

import structlog
from celery.worker import state as celery_state

if TYPE_CHECKING:
    from workers.host import Host

log = structlog.get_logger(__name__)

HURRY_S = 0.5
"""How long a second signal leaves the drain to finish: it takes two calls of a server that answers."""


class Stopping:
    """Ends a host. ``wake`` has Celery's loop look whether it should stop."""

    def __init__(self, host: Host, wake: Callable[[], None]) -> None:
        self._host = host
        self._wake = wake
        self._has_begun = False

    def install(self) -> None:
        """Take SIGTERM and SIGINT over from Celery. For the main thread, after Celery has installed its own."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def begin(self) -> None:
        """Drain, and see that the process ends in time: Celery itself may wait for a silent server without end."""
        if self._has_begun:
            return
        self._has_begun = True
        # In threads: this runs inside signal handlers.
        _in_background("drain", self._drain)
        hurry = threading.Timer(self._host.settings.worker.drain_s, self._host.exit_now, (0,))
        hurry.daemon = True
        hurry.start()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._has_begun:
            _in_background("hurry", lambda: self._host.exit_now(128 + number, wait_s=HURRY_S))
            return
        setattr(celery_state, "should_stop", 0)  # noqa: B010 (its stub says that it is always None)
        self.begin()

    def _drain(self) -> None:
        log.info("stopping", worker=self._host.attempts.worker)
        self._host.drain()
        self._wake()


def _in_background(name: str, call: Callable[[], None]) -> None:
    threading.Thread(target=call, name=name, daemon=True).start()
