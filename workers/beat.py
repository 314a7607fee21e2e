"""The thread by which a worker shows the ledger that it lives, over and over, whatever the server does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from farm.errors import ServerUnreachable
from farm.logs import log_defect

log = structlog.get_logger(__name__)


class Beat:
    """Calls ``call``, which may raise, every ``interval_s()`` seconds from one beginning to the next."""

    def __init__(self, call: Callable[[], None], interval_s: Callable[[], float]) -> None:
        self.is_answered = True
        """Whether the server answered the latest call."""
        self._call = call
        self._interval_s = interval_s
        self._began = time.monotonic()
        self._is_due = False
        self._woken = threading.Event()
        self._stopped = threading.Event()

    @property
    def silent_s(self) -> float:
        """Seconds since the latest call began."""
        return time.monotonic() - self._began

    def start(self) -> None:
        threading.Thread(target=self._run, name="beat", daemon=True).start()

    def call_now(self) -> None:
        """Call without waiting for the interval's end; again, if a call is under way."""
        self._is_due = True
        self._woken.set()

    def wake(self) -> None:
        """Have the interval looked at again: it may be shorter now."""
        self._woken.set()

    def stop(self) -> None:
        self._stopped.set()
        self._woken.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._began, self._is_due = time.monotonic(), False
            try:
                self._call()
                self.is_answered = True
            except ServerUnreachable as error:
                if self.is_answered:
                    log.warning("server_unreachable", error=str(error))
                self.is_answered = False
            except Exception as error:
                log_defect(log, "beat_failed", error)
            while (left_s := self._left_s()) > 0:
                if self._woken.wait(left_s):
                    self._woken.clear()

    def _left_s(self) -> float:
        if self._is_due or self._stopped.is_set():
            return 0.0
        return self._began + self._interval_s() - time.monotonic()
