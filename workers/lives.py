"""An engine that is kept running: one engine process after another, with longer and longer waits between the deaths.

It says whether there is one to send work to, and why not. It knows no job; ``workers.runner`` does.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import structlog

from farm.errors import EngineLost, ModelRefused
from farm.logs import log_defect
from farm.settings import EngineSettings
from workers.account import Account
from workers.deaths import Deaths
from workers.engine.protocol import Add, Failed, Finished, Ready, Report, SamplingParams
from workers.engine_process import EngineProcess

log = structlog.get_logger(__name__)

# Token 0 is in every vocabulary. A hexadecimal number as all nonces are, and shorter than any.
TEST = Add(id="0", prompt=[0], params=SamplingParams(max_tokens=1, ignore_eos=True))


class Lives:
    """The engine's lives, of which at most one serves."""

    def __init__(
        self,
        settings: EngineSettings,
        *,
        on_report: Callable[[Report], None],
        on_ready: Callable[[EngineProcess, Ready], None],
        on_lost: Callable[[EngineProcess, str], None],
    ) -> None:
        """on_lost: an engine that served is gone, for this reason."""
        self.serving: EngineProcess | None = None
        """The engine that takes work, if there is one."""
        self.last_report = Report(0, 0, 0, [])
        self.account = Account()
        """What all lives have computed."""
        self.total_deaths = 0
        self._settings = settings
        self._on_report = on_report
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._deaths = Deaths(settings.max_deaths, settings.respawn_cap_s)
        self._newest: EngineProcess | None = None
        self._ended: EngineProcess | None = None
        self._ceasing = threading.Event()
        self._tested: queue.SimpleQueue[Finished | Failed | None] = queue.SimpleQueue()

    @property
    def is_failing(self) -> bool:
        """Whether it died too often, and none has lived since."""
        return self._deaths.is_failing

    @property
    def trouble(self) -> str:
        """Why there is no engine to send work to, for people; empty when there is one."""
        if self.serving is not None:
            return ""
        if self.is_failing:
            return f"engine failing: {self._deaths.count} deaths in a row, the latest: {self._deaths.why}"
        return f"engine starting again: {self._deaths.why}" if self._deaths.count else "starting"

    @property
    def silent_s(self) -> float:
        """Seconds since the engine that serves last showed progress; 0 while none does."""
        engine = self.serving
        return engine.silent_s if engine is not None else 0.0

    def start(self) -> None:
        """Bring up an engine, however many deaths it takes; returns early after ``cease``. Raises ModelRefused."""
        while not self._ceasing.wait(self._deaths.pause_s):
            with self._lock:
                if self._ceasing.is_set():
                    return
                self._tested = queue.SimpleQueue()
                self.account.begin_life()
                engine = self._newest = EngineProcess(self._settings, self._take_report, self._note_end)
            try:
                ready = engine.start()
            except (EngineLost, OSError) as error:  # the machine may have no process or memory for one now
                engine.kill()
                if not self._ceasing.is_set():
                    self._note_death(str(error))
                    log.warning("engine_start_failed", error=str(error), deaths=self._deaths.count)
                continue
            except Exception:
                engine.kill()
                raise
            if self._deaths.needs_test and not self._passes_test(engine):
                continue
            with self._lock:
                if self._ended is engine or self._ceasing.is_set():
                    continue
                self.serving = engine
            log.info("engine_ready", kernels=ready.kernels, slots=ready.slots, load_s=round(ready.load_s, 2))
            self._make_known(engine, ready)
            return

    def gave_token(self) -> None:
        """A job got a token: whatever died before, this engine works."""
        self._deaths.gave_token()

    def cease(self) -> None:
        """Start no more, and end one that is still loading."""
        with self._lock:
            self._ceasing.set()
            loading = self._newest if self.serving is None else None
            self._tested.put(None)
        if loading is not None:
            loading.kill()

    def end(self) -> None:
        """``cease``, and end the one that serves."""
        self.cease()
        engine, self.serving = self.serving, None
        if engine is not None:
            engine.kill()

    def _make_known(self, engine: EngineProcess, ready: Ready) -> None:
        """Tell of an engine that serves. One that can't be told of serves no more."""
        try:
            self._on_ready(engine, ready)
        except Exception:
            with self._lock:
                has_ended = self.serving is not engine
                if not has_ended:
                    self.serving = None
            engine.kill()
            if not has_ended:  # else whoever noticed its end starts the next one
                raise

    def _passes_test(self, engine: EngineProcess) -> bool:
        """Have it generate a token for no job. False when it can't, died of it, or hung and was killed."""
        engine.send(TEST)
        end = self._tested.get()
        if isinstance(end, Failed):
            engine.kill()
            self._note_death(f"it could not generate: {end.code}")
        elif end is not None:
            self._deaths.passed_test()
        return isinstance(end, Finished)

    def _take_report(self, report: Report) -> None:
        self.last_report = report
        self.account.absorb(report)
        for event in report.events:
            if event.id == TEST.id and isinstance(event, Finished | Failed):
                self._tested.put(event)
        self._on_report(report)

    def _note_end(self, engine: EngineProcess, reason: str) -> None:
        """An engine that had loaded is gone."""
        self._note_death(f"{reason}, {engine.end}")
        with self._lock:
            self._ended = engine
            has_served = self.serving is engine
            if has_served:
                self.serving = None
        self.last_report = Report(0, 0, 0, [])
        self._tested.put(None)
        if has_served and not self._ceasing.is_set():
            threading.Thread(target=self._start_again, name="engine-relaunch", daemon=True).start()
            self._on_lost(engine, reason)

    def _note_death(self, why: str) -> None:
        self.total_deaths += 1
        self._deaths.died(why)

    def _start_again(self) -> None:
        while not self._ceasing.is_set():
            try:
                self.start()
                return
            except ModelRefused as error:
                # It was served until now: a GPU gives the memory back a moment after its process is gone.
                self._note_death(f"refused: {error}")
                log.warning("engine_refused", error=str(error), deaths=self._deaths.count)
            except Exception as error:
                # Nobody else starts engines: the worker would live on without one.
                self._note_death(f"{type(error).__name__} at its start; see the log")
                log_defect(log, "engine_not_started", error)
