"""One worker process: its name, its ledger, its engine's runner, its keeper and heartbeat, from start to stop."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time

import structlog
from celery import Celery
from celery.worker import state as celery_state

from farm import keys
from farm.broker import foreign_queues
from farm.connection import our_errors
from farm.contracts import SAFE_NAME
from farm.errors import LedgerTooNew, ServerUnreachable, SettingsError
from farm.ledger.attempts import Attempts
from farm.ledger.jobs import Jobs
from farm.ledger.upkeep import Upkeep
from farm.settings import Settings
from workers import telemetry
from workers.beat import Beat
from workers.exits import EXIT_REFUSED
from workers.health import Health
from workers.heartbeat import Heartbeat
from workers.keeper import Keeper
from workers.runner import Runner
from workers.system.chores import Chores

log = structlog.get_logger(__name__)


class Host:
    """What the tasks of one worker process share."""

    def __init__(self, settings: Settings, app: Celery) -> None:
        # Two workers of one machine must not pass for two lives of one worker; in a container the pid stays the same.
        name = settings.worker.name or f"{socket.gethostname()}-{os.getpid()}"
        if not SAFE_NAME.match(name):
            raise SettingsError(f"FARM_WORKER__NAME: {name!r} is no name; use letters, digits, '.', '_' and '-'")
        self.settings = settings
        self.app = app
        self.name = name
        self.jobs = Jobs(settings)
        self.attempts = Attempts(self.jobs, f"{name}.{secrets.token_hex(4)}")
        self.keeper = Keeper(settings, app, Upkeep(self.jobs))
        self.health = Health(settings, self)
        self.heartbeat = Heartbeat(settings.worker.heartbeat_file, self.health)
        self.runner: Runner | None = None
        self.chores: Chores | None = None
        if settings.worker.role == "model":
            self.runner = Runner(settings, self.attempts, name, self._refused)
        else:
            self.chores = Chores(self.jobs, self.attempts.worker)
        self.beat = self.runner.beat if self.runner else Beat(self._beat, lambda: settings.keeper.liveness_s / 3)
        self._is_registered = False
        self.foreign = frozenset(foreign_queues(settings))
        self._foreign_again_at = 0.0
        self._draining = threading.Event()

    @property
    def is_known(self) -> bool:
        """Whether the farm knows this worker, so that it takes messages."""
        return self.runner.is_open if self.runner is not None else self._is_registered

    @property
    def is_stopping(self) -> bool:
        return self._draining.is_set()

    def may_consume(self) -> bool:
        """Whether Celery may ask the broker for messages: none that would wait here while others could take them."""
        return not self.is_stopping and (self.runner is None or self.runner.is_open)

    def may_take_from(self, queue: str) -> bool:
        """Whether Celery may ask the broker for messages of a queue."""
        return queue not in self.foreign or time.monotonic() >= self._foreign_again_at

    def leave_foreign(self, seconds: float) -> None:
        """Have foreign messages wait in their queues: the ledger has no room for them now."""
        self._foreign_again_at = time.monotonic() + seconds

    def start(self) -> None:
        """Load the model, then take part. Raises ModelRefused."""
        telemetry.serve(self)
        self.heartbeat.start()
        if self.runner is not None:
            self.runner.start()
        else:
            self.beat.start()
        self.keeper.start()
        if self.chores is not None:
            self.chores.start()
        log.info("worker_started", worker=self.attempts.worker, role=self.settings.worker.role)

    def drain(self) -> None:
        """Hand all jobs back, so that the task threads end and Celery can stop."""
        self._draining.set()
        if self.runner is not None:
            self.runner.drain()
        if self.chores is not None:
            self.chores.ask_to_stop()

    def stop(self) -> None:
        """Take leave of the farm."""
        self.drain()
        if self.chores is not None:
            self.chores.stop()
        self.heartbeat.stop()
        self.keeper.stop()
        self.beat.stop()
        if self.runner is not None:
            self.runner.stop()
        try:
            self.attempts.leave()
        except ServerUnreachable:
            log.debug("left_without_server")

    def exit_now(self, code: int, wait_s: float = 0.0) -> None:
        """End the process once all was handed back or ``wait_s`` have passed. Leases and nonces make that safe."""
        if self.runner is not None:
            self.runner.drained.wait(wait_s)
            log.warning("left_in_haste", handed_back=self.runner.drained.is_set())
            self.runner.stop()
        self.heartbeat.stop()
        os._exit(code)

    def cancel(self, job_ids: list[str]) -> None:
        """Cancel jobs whose Celery tasks were revoked."""
        try:
            self.jobs.cancel(job_ids)
        except ServerUnreachable as error:
            log.warning("revoke_without_server", jobs=job_ids, error=str(error))

    def delivered(self, job_id: str) -> None:
        """A plain job's result is stored; nobody needs to deliver it again."""
        try:
            with our_errors(self.jobs.where):
                self.jobs.client.zrem(keys.UNDELIVERED, job_id)
        except ServerUnreachable:
            log.debug("delivered_without_server", job=job_id)

    def _refused(self, message: str) -> None:
        log.error("worker_refused", error=message)
        setattr(celery_state, "should_stop", EXIT_REFUSED)  # noqa: B010 (its stub says that it is always None)

    def _beat(self) -> None:
        """Show that a worker without an engine lives."""
        if not self._is_registered:
            try:
                self.attempts.register(self.name, "", 0, "system", None)
            except LedgerTooNew as error:
                self._refused(str(error))
                return
        self._is_registered, _ = self.attempts.progress([], 0)
