"""A file whose age says whether this worker lives: touched while ``/livez`` would say so.

A liveness probe reads its age, which costs milliseconds and needs no port; asking Celery costs half a second of CPU.
"""

from __future__ import annotations

import threading
from pathlib import Path

import structlog

from workers.health import Health

log = structlog.get_logger(__name__)

INTERVAL_S = 2.0


class Heartbeat:
    """Touches ``FARM_WORKER__HEARTBEAT_FILE`` every two seconds; does nothing when that is not set."""

    def __init__(self, path: Path | None, health: Health) -> None:
        self._path = path
        self._health = health
        self._stopped = threading.Event()

    def start(self) -> None:
        if self._path is not None:
            threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Stop, and take the file away: a stopped worker is not alive."""
        self._stopped.set()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        assert self._path is not None
        while not self._stopped.is_set():
            if not self._health.why_dead():
                try:
                    self._path.touch()
                except OSError as error:
                    log.warning("heartbeat_not_written", file=str(self._path), error=str(error))
            self._stopped.wait(INTERVAL_S)
