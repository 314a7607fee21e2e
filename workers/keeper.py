"""The keeper: a thread in every worker; one leads. It publishes the messages of jobs whose turn it is.

Woken by whoever changes something, else by a tick. It survives whatever the server does: every look starts afresh.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import structlog
from celery import Celery
from kombu.exceptions import BatchPublishError, OperationalError  # type: ignore[attr-defined]

from farm import schema
from farm.broker import TASK, queue_of
from farm.errors import ServerUnreachable
from farm.ledger.upkeep import MOST, Dispatch, Upkeep
from farm.logs import log_defect
from farm.settings import Settings

log = structlog.get_logger(__name__)

WEIGH_S = 1.0  # how often the server's memory is looked at
GROUP = 8  # messages sent together: few, so that an idle worker begins on the first while the rest are made


class Keeper:
    """One keeper and its thread."""

    def __init__(self, settings: Settings, app: Celery, upkeep: Upkeep) -> None:
        self._settings = settings
        self._app = app
        self._upkeep = upkeep
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._looked_at = time.monotonic()
        self._weighed_at = 0.0

    def start(self) -> None:
        self._thread.start()

    @property
    def silent_s(self) -> float:
        """Seconds since it last came round, leading or not; 0 while it is not running."""
        return time.monotonic() - self._looked_at if self._thread.is_alive() else 0.0

    def stop(self) -> None:
        """Stop looking and leave the lead to another."""
        self._stopped.set()
        if not self._thread.is_alive():
            return
        self._thread.join(timeout=2 * self._settings.redis.timeout_s)
        try:
            self._upkeep.resign()
        except ServerUnreachable:
            log.debug("resigned_without_server")

    def _run(self) -> None:
        keeper = self._settings.keeper
        wait_s, kept_at = 0.1, 0.0
        while not self._stopped.is_set():
            self._looked_at = time.monotonic()
            try:
                leads = True
                if time.monotonic() - kept_at >= keeper.tick_s:
                    kept_at = time.monotonic()
                    leads = self._keep()
                if not leads or not self._dispatch():
                    # To wait for a wake-up would take it from whoever leads.
                    self._stopped.wait(keeper.lock_s / 2)
                    continue
                wait_s = 0.1
                self._stopped.wait(keeper.debounce_s)
                self._upkeep.wait(keeper.tick_s)
            except (ServerUnreachable, OperationalError, BatchPublishError) as error:
                log.warning("keeper_waits_for_server", error=str(error), wait_s=wait_s)
                self._stopped.wait(wait_s)
                wait_s = min(2.0, 2 * wait_s)
            except Exception as error:
                log_defect(log, "keeper_failed", error)
                self._stopped.wait(1.0)

    def _keep(self) -> bool:
        done = self._upkeep.keep()
        if done.leases_ended or done.expired or done.republished:
            log.info("upkeep", leases_ended=done.leases_ended, expired=done.expired, republished=done.republished)
        self._publish(done.messages)
        if done.is_leader and time.monotonic() - self._weighed_at >= WEIGH_S:
            self._weighed_at = time.monotonic()
            if self._upkeep.watch_memory():
                log.warning("server_short_of_memory", server=self._upkeep.jobs.where)
        return done.is_leader

    def _dispatch(self) -> bool:
        """Publish what there is room for. Returns whether this keeper leads."""
        while True:
            done = self._upkeep.dispatch()
            self._publish(done.messages)
            if len(done.messages) < MOST or self._stopped.is_set():
                return done.is_leader

    def _publish(self, messages: list[Dispatch]) -> None:
        """Send one Celery message a job. What gets lost on the way goes out again: nobody will have claimed it."""
        if not messages:
            return
        task = self._app.tasks[TASK]
        pool: Any = self._app.producer_pool  # its stubs lack batch
        with pool.acquire(block=True) as producer, producer.batch(max_size=GROUP):
            for message in messages:
                task.apply_async(producer=producer, **_envelope(message))


def _envelope(message: Dispatch) -> dict[str, Any]:
    """What apply_async needs. Jobs from a plain Celery message keep its headers, so that canvas goes on.

    Model and priority are there for Flower to show; a worker goes by the ledger.
    """
    common: dict[str, Any] = {
        "kwargs": {
            "job": message.id,
            "dispatch": message.number,
            "model": message.model,
            "priority": message.priority,
            "schema": schema.WRITES,
        },
        "task_id": message.id,
        "queue": queue_of(message.model),
        "ignore_result": True,
        # What people see of it the worker tells (workers.redaction). Celery's own words take a quarter of the time.
        "argsrepr": "",
        "kwargsrepr": "",
    }
    if not message.plain:
        return common
    headers = json.loads(message.plain)
    return {**common, **{name: value for name, value in headers.items() if value is not None}}
