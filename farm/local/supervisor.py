"""Keep child processes running: one thread starts them, notices their ends, starts them again and ends them in order.

One thread for all, because the kernel ties a child to the thread that started it (``farm.local.tether``), and because
with one owner nothing needs a lock. It knows parts, and nothing of farms.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from farm.errors import FarmError, ModelRefused
from farm.local.ends import how_ended
from farm.local.parts import REFUSED, Part, wait_for_end

TICK_S = 0.1
BACKOFF_S = (0.2, 1.0, 2.0, 5.0, 10.0, 30.0)
STEADY_S = 60.0  # a part that ran for so long is started again without much delay
MAX_EARLY_DEATHS = 5  # a part that dies so often before all is ready has a reason that time won't cure


class StackFailed(FarmError):
    """A part of the local farm can't be started."""

    code = "stack_failed"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a person who started a farm wants to know; ``text`` is a sentence without its subject."""

    part: str
    kind: Literal["ended", "restarted", "gave_up", "missing"]
    text: str


@dataclass
class _Watch:
    """What the owner remembers of a part."""

    part: Part
    started_at: float
    deaths: int = 0
    again_at: float | None = None
    is_given_up: bool = False


class Supervisor:
    """Owns the parts that ``setup`` launches. ``on_event`` is called in the owner's thread."""

    def __init__(self, setup: Callable[[Supervisor], None], on_event: Callable[[Event], None]) -> None:
        self.on_event = on_event
        self.is_settled = False
        """Set once all is ready: from then on no part is given up."""
        self._setup = setup
        self._watches: list[_Watch] = []
        self._thread = threading.Thread(target=self._own, name="supervisor", daemon=True)
        self._launched, self._stopping, self._hurry = threading.Event(), threading.Event(), threading.Event()
        self._failure: Exception | None = None

    @property
    def parts(self) -> list[Part]:
        return [watch.part for watch in self._watches]

    @property
    def given_up(self) -> set[str]:
        """Names of the parts that are started no more."""
        return {watch.part.name for watch in self._watches if watch.is_given_up}

    def start(self) -> None:
        """Run ``setup`` in the owner's thread; returns once it is through. Raises what it raised."""
        self._thread.start()
        self._launched.wait()
        self.check()

    def launch(self, part: Part) -> None:
        """Start a part and watch it. For ``setup`` alone: it runs in the owner's thread."""
        self._watches.append(_Watch(part, time.monotonic()))
        part.start()

    def check(self) -> None:
        """Raise what keeps the parts from running, if anything: StackFailed, ModelRefused, a part's own error."""
        if self._failure is not None:
            raise self._failure

    def wait(self, timeout_s: float) -> bool:
        """Wait until somebody asks to stop; False when nobody has after ``timeout_s``."""
        return self._stopping.wait(timeout_s)

    def ask_to_stop(self) -> None:
        """Have ``wait`` return True. Fit for a signal handler; asking again makes the stop immediate."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    def stop(self) -> None:
        """End all parts, those of the lowest rank first, and return when they have ended."""
        self._stopping.set()
        self._thread.join()

    def _own(self) -> None:
        try:
            self._setup(self)
            self._launched.set()
            while not self._stopping.wait(TICK_S):
                for watch in self._watches:
                    self._look(watch)
        except Exception as error:
            self._failure = error
        finally:
            self._launched.set()
            self._stopping.wait()  # the parts live on until whoever reads the failure calls stop
            self._end_all()

    def _look(self, watch: _Watch) -> None:
        """Notice a part's end, and start it again when its time has come."""
        now = time.monotonic()
        if watch.is_given_up:
            return
        if watch.again_at is not None:
            if now >= watch.again_at:
                self._start_again(watch)
        elif (status := watch.part.ended()) is not None:
            watch.deaths = 1 if now - watch.started_at > STEADY_S else watch.deaths + 1
            self._decide(watch, status)

    def _decide(self, watch: _Watch, status: int) -> None:
        """Start an ended part again soon, or give it up."""
        part, how, said = watch.part, how_ended(status), watch.part.last_words()
        if status == REFUSED:
            raise ModelRefused(said or f"{part.name} refused to start; see {part.log_path}")
        words = f": {said}" if said and status > 0 else ""
        if watch.deaths < MAX_EARLY_DEATHS or self.is_settled:
            watch.again_at = time.monotonic() + _pause_s(watch.deaths)
            self.on_event(Event(part.name, "ended", f"{how}; starting it again{words}"))
        elif part.is_essential:
            raise StackFailed(f"{part.name} {how} {watch.deaths} times{words}; see {part.log_path}")
        else:
            watch.is_given_up = True
            self.on_event(Event(part.name, "gave_up", f"{how} {watch.deaths} times{words}; see {part.log_path}"))

    def _start_again(self, watch: _Watch) -> None:
        watch.again_at = None
        watch.part.kill()  # what its process may have left behind
        try:
            watch.part.start()
        except (FarmError, OSError) as error:
            watch.deaths += 1
            watch.again_at = time.monotonic() + _pause_s(watch.deaths)
            self.on_event(Event(watch.part.name, "ended", f"does not start: {error}"))
            return
        watch.started_at = time.monotonic()
        self.on_event(Event(watch.part.name, "restarted", "was started again"))

    def _end_all(self) -> None:
        for rank in sorted({part.rank for part in self.parts}):
            stage = [part for part in self.parts if part.rank == rank]
            for part in stage:
                part.terminate()
            wait_for_end([part for part in stage if part.is_disposable], self._hurry.is_set)
            wait_for_end([part for part in stage if not part.is_disposable], lambda: False)
            for part in stage:
                part.kill()


def _pause_s(deaths: int) -> float:
    return BACKOFF_S[min(deaths, len(BACKOFF_S)) - 1]
