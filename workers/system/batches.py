"""The driver of batches: takes batches that wait, drives some at once, a thread each, and keeps their leases.

Any number of workers may do this. A batch that was driven for its turn goes to the end of the line while others wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import structlog

from farm.errors import FarmError, ServerFull, ServerUnreachable
from farm.file_store import StoreUnavailable, open_store
from farm.ledger.driving import Drive, Driving, LeaseLost
from farm.ledger.files import Files
from farm.ledger.jobs import Jobs
from farm.ledger.streams import Reader
from farm.ledger.trash import Trash
from farm.logs import log_defect
from farm.prompts import PromptCheck
from workers.system.batch_run import BatchRun, Workshop
from workers.system.hold import Hold, TurnOver

log = structlog.get_logger(__name__)

LOOK_S = 0.5
ROOM_PAUSE_S = 5.0
BUG_PAUSE_S = 30.0
STOP_S = 2.5


class BatchDriver:
    """One driver and its threads."""

    def __init__(self, jobs: Jobs, worker: str) -> None:
        """Raises SettingsError for a file store that can't be used."""
        self._settings = jobs.settings.batches
        self._keep_s = min(1.0, jobs.settings.lease.lease_s / 4)
        self._driving = Driving(jobs, worker)
        self._stopped = threading.Event()
        self._reader = Reader(jobs)
        self._shop = Workshop(
            jobs, self._reader, PromptCheck(jobs), open_store(jobs.settings), Files(jobs), Trash(jobs), self._driving
        )
        self._driven: dict[Drive, threading.Thread] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Have all batches written as far as they came, and left to others."""
        self._stopped.set()

    def stop(self) -> None:
        """Stop, waiting a little for batches to be left in order; one that is not is taken over after its lease."""
        self.ask_to_stop()
        until = time.monotonic() + STOP_S
        with self._lock:
            threads = [self._thread, *self._driven.values()]
        for thread in threads:
            if thread.is_alive():
                thread.join(timeout=max(0.0, until - time.monotonic()))
        self._reader.close()

    def _run(self) -> None:
        kept_at = 0.0
        while not self._stopped.is_set():
            try:
                if time.monotonic() >= kept_at + self._keep_s:
                    kept_at = time.monotonic()
                    self._keep()
                self._take()
            except ServerUnreachable as error:
                log.warning("batches_wait_for_server", error=str(error))
            except Exception as error:
                log_defect(log, "batch_driver_failed", error)
            self._stopped.wait(min(LOOK_S, self._keep_s))

    def _keep(self) -> None:
        with self._lock:
            driven = list(self._driven)
        for drive in driven:
            self._driving.keep(drive)

    def _take(self) -> None:
        while len(self._driven) < self._settings.active and not self._stopped.is_set():
            drive = self._driving.take()
            if drive is None:
                return
            log.info("batch_taken", batch=drive.id, status=drive.status, line=drive.progress.next_line)
            thread = threading.Thread(target=self._drive, args=(drive,), name=drive.id[:20], daemon=True)
            with self._lock:
                self._driven[drive] = thread
            thread.start()

    def _drive(self, drive: Drive) -> None:
        wait_s: float | None = None
        try:
            BatchRun(self._shop, drive, Hold(drive, self._stopped, self._turn_of(drive))).run()
            log.info("batch_ended", batch=drive.id, lines=drive.progress.total, failed=drive.progress.bad)
        except TurnOver:
            wait_s = 0.0
        except LeaseLost:
            log.info("batch_left", batch=drive.id)
        except (StoreUnavailable, ServerFull) as error:
            log.warning("batch_waits_for_room", batch=drive.id, error=str(error))
            wait_s = ROOM_PAUSE_S
        except Exception as error:
            log_defect(log, "batch_failed", error, batch=drive.id)
            wait_s = BUG_PAUSE_S
            self._note_fault(drive)
        finally:
            with self._lock:
                del self._driven[drive]
            if wait_s is not None:
                self._give_back(drive, wait_s)

    def _note_fault(self, drive: Drive) -> None:
        try:
            self._driving.advance(drive, replace(drive.progress, faults=drive.progress.faults + 1))
        except (FarmError, LeaseLost):
            log.warning("fault_not_noted", batch=drive.id)

    def _give_back(self, drive: Drive, wait_s: float) -> None:
        try:
            self._driving.give_back(drive, wait_s)
        except FarmError as error:
            log.warning("batch_not_given_back", batch=drive.id, error=str(error))

    def _turn_of(self, drive: Drive) -> Callable[[], bool]:
        """Whether a batch has had its turn: only where others wait and there is no room for them."""
        until = time.monotonic() + self._settings.turn_s

        def is_over() -> bool:
            is_crowded = drive.others_wait and len(self._driven) >= self._settings.active
            return is_crowded and time.monotonic() >= until

        return is_over
