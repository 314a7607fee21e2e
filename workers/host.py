"""One worker process: its name, its ledger, its engine's runner, its keeper and heartbeat, from start to stop."""

from __future__ import annotations

import os
import secrets
import socket
import threading

import structlog
from celery import Celery
from celery.worker import state as celery_state

from farm import keys
from farm.connection import our_errors
from farm.contracts import SAFE_NAME
from farm.errors import ServerUnreachable, SettingsError
from farm.ledger.attempts import Attempts
from farm.ledger.jobs import Jobs
from farm.ledger.upkeep import Upkeep
from farm.settings import Settings
from workers import metrics
from workers.exits import EXIT_REFUSED
from workers.heartbeat import Heartbeat
from workers.keeper import Keeper
from workers.runner import Runner

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
        self.heartbeat = Heartbeat(settings, self)
        self.runner: Runner | None = None
        if settings.worker.role == "model":
            self.runner = Runner(settings, self.attempts, name, self._refused)
        self._stopped = threading.Event()

    def start(self) -> None:
        """Load the model, then take part. Raises ModelRefused."""
        if self.runner is not None:
            metrics.serve(self.settings.telemetry, self.runner)
            self.runner.start()
        else:
            threading.Thread(target=self._beat_without_engine, name="beat", daemon=True).start()
        self.keeper.start()
        self.heartbeat.start()
        log.info("worker_started", worker=self.attempts.worker, role=self.settings.worker.role)

    def drain(self) -> None:
        """Hand all jobs back, so that the task threads end and Celery can stop."""
        if self.runner is not None:
            self.runner.drain()

    def stop(self) -> None:
        """Take leave of the farm."""
        self.drain()
        self._stopped.set()
        self.heartbeat.stop()
        self.keeper.stop()
        if self.runner is not None:
            self.runner.stop()
        try:
            self.attempts.leave()
        except ServerUnreachable:
            log.debug("left_without_server")

    def exit_now(self) -> None:
        """End the process, whatever still waits for the server. Leases and nonces make that safe."""
        log.warning("left_in_haste", drain_s=self.settings.worker.drain_s)
        if self.runner is not None:
            self.runner.stop()
        os._exit(0)

    def pause(self, seconds: float) -> None:
        """Wait, or return early when the worker stops."""
        self._stopped.wait(seconds)

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
        log.error("model_refused", error=message)
        setattr(celery_state, "should_stop", EXIT_REFUSED)  # noqa: B010 (its stub says that it is always None)

    def _beat_without_engine(self) -> None:
        known = False
        while not self._stopped.wait(self.settings.keeper.liveness_s / 3 if known else 0):
            try:
                if not known:
                    self.attempts.register(self.name, "", 0, "system", None)
                known, _ = self.attempts.progress([], 0)
            except ServerUnreachable as error:
                log.warning("server_unreachable", error=str(error))
                known = True
                self._stopped.wait(1.0)
