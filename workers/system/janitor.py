"""The janitor: deletes files whose time has come, and what was written and never became a file."""

from __future__ import annotations

import threading

import structlog

from farm.errors import FarmError
from farm.file_store import StoreUnavailable, open_store
from farm.ledger.jobs import Jobs
from farm.ledger.trash import Trash
from farm.logs import log_defect

log = structlog.get_logger(__name__)

LOOK_S = 10.0
MOST = 100


class Janitor:
    """One janitor and its thread. Several may work side by side: deleting twice does no harm."""

    def __init__(self, jobs: Jobs) -> None:
        """Raises SettingsError for a file store that can't be used."""
        self._trash = Trash(jobs)
        self._store = open_store(jobs.settings)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="janitor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                if self.clean():
                    continue
            except FarmError as error:
                log.warning("janitor_waits_for_server", error=str(error))
            except Exception as error:
                log_defect(log, "janitor_failed", error)
            self._stopped.wait(LOOK_S)

    def clean(self) -> bool:
        """Delete some of what is due. Returns whether there may be more at once."""
        looked = self._trash.drop_expired(MOST)
        paths = self._trash.paths(MOST)
        for path in paths:
            if self._stopped.is_set():
                break
            try:
                self._store.delete(path)
            except StoreUnavailable as error:
                self._trash.not_deleted(path)
                log.warning("file_not_deleted", path=path, error=str(error))
            else:
                self._trash.deleted(path)
        return max(looked, len(paths)) == MOST
