"""What Flower remembers: tasks with the farm's columns, from events that were made safe, kept in a file."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import tempfile
import time
from pathlib import Path
from typing import Any

from celery import states
from celery.events import EventReceiver
from celery.events.state import Task
from flower.events import Events, EventsState
from flower.inspector import Inspector

from farm.flower.redaction import safe_event, safe_request

log = logging.getLogger(__name__)

RETRY_S = 1.0
HELD = ("active", "reserved", "scheduled")


class JobTask(Task):
    """A task with what the farm's columns show; each is None until it is known."""

    model: str | None = None
    priority: str | None = None
    tokens: int | None = None
    queued_s: float | None = None

    _fields = (*Task._fields, "model", "priority", "tokens", "queued_s")  # type: ignore[attr-defined]  # its stubs lack it
    # A message is delivered again after a release: what it says is taken even if a later event came first.
    merge_rules = {  # noqa: RUF012
        **Task.merge_rules,
        states.RECEIVED: (*Task.merge_rules[states.RECEIVED], "model", "priority"),
    }


class FarmState(EventsState):  # type: ignore[misc]
    """Flower's state, with such tasks. It forgets the oldest tasks and workers, and what it counted of those."""

    Task = JobTask

    def event(self, event: dict[str, Any]) -> None:
        """Take an event that is safe. One that lacks what its kind has is dropped, and its content logged by nobody."""
        try:
            super().event(event)
        except Exception as error:  # a stranger's event may hold anything
            dropped(error)
        if len(self.counter) > self.max_workers_in_memory:
            for name in [name for name in self.counter if name not in self.workers]:
                del self.counter[name]


class Ear(EventReceiver):
    """Receives events, and goes on after one that is none: whoever listens anew misses what comes meanwhile."""

    def get_consumers(self, Consumer: Any, channel: Any) -> list[Any]:  # noqa: N803 (Celery names it)
        """Celery's own, which don't quote what they can't decode."""
        consumers: list[Any] = super().get_consumers(Consumer, channel)
        for consumer in consumers:
            consumer.on_decode_error = lambda _message, error: dropped(error)
        return consumers

    def _receive(self, body: Any, _message: Any, **_: Any) -> None:
        for event in body if isinstance(body, list) else [body]:
            try:
                self.process(*self.event_from_message(event))
            except Exception as error:  # a stranger's event may hold anything
                dropped(error)


class FarmEvents(Events):  # type: ignore[misc]
    """Listens to the broker. Makes every event safe before it is kept, so that searches find nothing else either."""

    def __init__(self, capp: Any, io_loop: Any, db: Path, *, max_tasks: int, max_workers: int, save_s: float) -> None:
        limits = {"max_tasks_in_memory": max_tasks, "max_workers_in_memory": max_workers}
        self.state: FarmState
        super().__init__(capp, io_loop, db=db, persistent=True, state_save_interval=round(save_s * 1000), **limits)
        if not isinstance(self.state, FarmState):
            self.state = FarmState(**limits)

    def run(self) -> None:
        """Listen, for as long as Flower runs."""
        while True:
            try:
                with self.capp.connection() as connection:
                    Ear(connection, handlers={"*": self.on_event}, app=self.capp).capture(limit=None, wakeup=True)
            except Exception as error:
                log.warning("not listening, trying again in %s s: %s", RETRY_S, type(error).__name__)
                time.sleep(RETRY_S)

    def on_event(self, event: dict[str, Any]) -> None:
        super().on_event(safe_event(event))

    def load_state(self) -> FarmState | None:
        """What was saved; None if that is nothing. A file that can't be used is set aside."""
        try:
            return load(self.db)
        except FileNotFoundError:
            return None
        except Exception as error:  # unpickling raises anything
            log.warning("starting afresh: %s can't be used (%s) and is now %s", self.db, error, aside(self.db))
            return None

    def save_state(self) -> None:
        """Write it down. A disk that is full costs the history, nothing else."""
        try:
            save(self.db, self.state)
        except OSError as error:
            log.warning("nothing kept: %s can't be written (%s)", self.db, error.strerror)


class FarmInspector(Inspector):  # type: ignore[misc]
    """Asks workers what they do, and keeps no arguments."""

    def _on_update(self, workername: str, method: str, response: Any) -> None:
        if method in HELD and isinstance(response, list):
            response = [safe_request(request) for request in response if isinstance(request, dict)]
        super()._on_update(workername, method, response)


def dropped(error: Exception) -> None:
    """Note that an event was of no use."""
    log.debug("an event was dropped: %s", type(error).__name__)


def save(path: Path, state: FarmState) -> None:
    """Write a state whole or not at all. Raises OSError."""
    body = pickle.dumps((state, dict(state.counter)))
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")  # for its owner alone
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(hashlib.sha256(body).digest() + body)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load(path: Path) -> FarmState:
    """The state in a file. Raises FileNotFoundError, and anything for a file that ``save`` did not write."""
    whole = path.read_bytes()
    digest, body = whole[:32], whole[32:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("it is damaged")
    state, counter = pickle.loads(body)  # noqa: S301  # in a folder that is its owner's alone
    if not isinstance(state, FarmState):
        raise TypeError("it holds something else")
    state.counter.update(counter)
    return state


def aside(path: Path) -> Path:
    """Move a file out of the way. Returns where it is now."""
    other = path.with_name(f"{path.name}.broken")
    try:
        path.replace(other)
    except OSError:
        return path
    return other
