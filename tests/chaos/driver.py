"""Carries a schedule out on the farm under test, and undoes every fault, also those that a stop leaves half done."""

from __future__ import annotations

import heapq
import itertools
import signal
import threading
from collections.abc import Callable

from tests.chaos.place import Place
from tests.chaos.record import Recorder, Skipped, Struck
from tests.chaos.schedule import Fault, Schedule
from tests.chaos.testbed import Testbed, script_call

GLANCE_S = 0.1  # how often workers are looked after
DELAY_S = 0.15  # what ``delay`` adds to each message
LATER_S = 0.2  # when to look again at a worker that still drains

Deed = Callable[[], None]


class Driver:
    """A thread that breaks things on time."""

    def __init__(self, bed: Testbed, schedule: Schedule, recorder: Recorder) -> None:
        self._bed = bed
        self._recorder = recorder
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="driver")
        self._order = itertools.count()
        self._agenda: list[tuple[float, int, Deed]] = []
        self._error: BaseException | None = None
        self._began = 0.0
        self.latest = ""
        for fault in schedule.faults:
            self._plan(fault.at_s, lambda fault=fault: self._strike(fault))  # type: ignore[misc]

    def start(self) -> None:
        self._began = self._recorder.now
        self._thread.start()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start; the schedule's own time."""
        return self._recorder.now - self._began

    def stop(self) -> None:
        """Strike no more, and mend everything. Raises what ended the thread, if something did."""
        self._stopped.set()
        self._thread.join()
        self._bed.heal()
        self._bed.revive()
        if self._error is not None:
            raise self._error

    def _plan(self, at_s: float, deed: Deed) -> None:
        heapq.heappush(self._agenda, (at_s, next(self._order), deed))

    def _run(self) -> None:
        try:
            while not self._stopped.wait(self._pause_s()):
                while self._agenda and self._agenda[0][0] <= self.elapsed_s:
                    heapq.heappop(self._agenda)[2]()
                self._bed.reap()
        except BaseException as error:
            self._error = error

    def _pause_s(self) -> float:
        until = self._agenda[0][0] - self.elapsed_s if self._agenda else GLANCE_S
        return max(0.0, min(GLANCE_S, until))

    def _strike(self, fault: Fault) -> None:
        undo = self._break(fault)
        if undo is None:
            self._recorder.add(Skipped(self._recorder.now, fault))
            return
        now = self._recorder.now
        worker, held = self._bed.aboard(fault.target) if fault.target in self._bed.places else ("", ())
        self._recorder.add(Struck(now, fault, worker, held))
        self.latest = f"{fault.kind} {fault.target}"
        self._plan(self.elapsed_s + fault.for_s, undo)

    def _break(self, fault: Fault) -> Deed | None:
        """Do it. Returns how to undo it, or None if there was nothing to break."""
        if fault.kind.endswith("-worker"):
            return self._break_worker(fault)
        if fault.kind.endswith("-engine"):
            return self._break_engine(fault)
        if fault.kind.endswith("-server"):
            return self._break_server(fault)
        return self._break_network(fault)

    def _break_worker(self, fault: Fault) -> Deed | None:
        place, is_lost = self._bed.places[fault.target], fault.kind == "lose-worker"
        if fault.kind == "freeze-worker":
            return place.thaw if place.freeze(engine_only=False) else None
        if fault.kind == "part-worker":
            assert place.proxy is not None, "workers are parted from the server by their proxies"
            place.proxy.refuse()
            return place.proxy.accept
        how = signal.SIGTERM if fault.kind == "terminate-worker" else signal.SIGKILL
        return (lambda: self._start(place, is_lost)) if place.signal(how, with_engine=is_lost) else None

    def _start(self, place: Place, as_new: bool) -> None:
        """Start a worker once the one before it has ended."""
        if not place.start(as_new=as_new):
            self._plan(self.elapsed_s + LATER_S, lambda: self._start(place, as_new))

    def _break_engine(self, fault: Fault) -> Deed | None:
        place = self._bed.places[fault.target]
        if fault.kind == "kill-engine":
            return _nothing if place.kill_engine() else None
        return place.thaw if place.freeze(engine_only=True) else None

    def _break_server(self, fault: Fault) -> Deed | None:
        bed = self._bed
        if not bed.server.is_running():
            return None
        if fault.kind == "freeze-server":
            bed.signal_server(signal.SIGSTOP)
            return lambda: bed.signal_server(signal.SIGCONT)
        if fault.kind == "kill-server":
            bed.server.kill()
        else:
            bed.server.stop()
        return bed.server.start

    def _break_network(self, fault: Fault) -> Deed:
        proxy = self._bed.proxy(fault.target)
        if fault.kind == "cut":
            proxy.cut()
            return _nothing
        if fault.kind == "drop-reply":
            proxy.drop_next_reply(script_call(fault.script))
            return _nothing
        if fault.kind == "cut-request":
            proxy.cut_before_next_request(script_call(fault.script))
            return _nothing
        if fault.kind == "refuse":
            proxy.refuse()
            return proxy.accept
        if fault.kind == "stall":
            proxy.stall()
            return proxy.resume
        proxy.delay(DELAY_S)
        return lambda: proxy.delay(0.0)


def _nothing() -> None:
    """What is over at once needs no undoing."""
