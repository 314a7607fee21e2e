"""The engine process as its worker sees it: started, spoken to, watched, killed.

It runs ``python -m workers.engine`` on one end of a socket pair. What it says goes to ``on_report``; when it ends, or
has work and finishes no step within the watchdog, ``on_lost`` is told once. It never outlives this process: its end of
the pair closes with ours. It knows no job, and starts nothing again: ``workers.lives`` does.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import ClassVar

import structlog

from farm.errors import EngineLost, ModelRefused
from farm.local.ends import how_ended
from farm.logs import log_defect
from farm.settings import EngineSettings
from workers.engine.protocol import Command, Halt, Halted, Ready, Refused, Report, decode, encode

log = structlog.get_logger(__name__)

REAP_S = 0.5


class EngineProcess:
    """One life of the engine. Use ``start`` once; a new life is a new object."""

    program: ClassVar[tuple[str, ...]] = (sys.executable, "-m", "workers.engine")
    """What is started. It is given ``--fd`` and a number: its end of the socket pair."""

    def __init__(
        self,
        settings: EngineSettings,
        on_report: Callable[[Report], None],
        on_lost: Callable[[EngineProcess, str], None],
    ) -> None:
        """on_lost: called with this life and the reason: engine_died, engine_hung or engine_broken."""
        self._settings = settings
        self._on_report = on_report
        self._on_lost = on_lost
        self._sending = threading.Lock()
        self._stopping = False
        self._is_hung = False
        self._halted = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._seen_at = time.monotonic()
        self._steps = -1

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def end(self) -> str:
        """How its process ended, in words; empty while it runs."""
        status = self._process.poll() if self._process else None
        return "" if status is None else how_ended(status)

    def start(self) -> Ready:
        """Start it and wait until its model is loaded.

        Raises ModelRefused when the model can't be served, EngineLost when the process died or took too long.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*self.program, "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._connection = Connection(ours.detach())
        if self._stopping:
            self._end()
        try:
            if not self._connection.poll(self._settings.load_timeout_s):
                limit_s = self._settings.load_timeout_s
                raise EngineLost(f"it did not load its model within FARM_ENGINE__LOAD_TIMEOUT_S={limit_s:g}")
            first = decode(self._connection.recv_bytes())
        except (EOFError, OSError):
            self._stopping = True
            self._reap()
            raise EngineLost(f"it {self.end} while loading its model; its last words are in the log") from None
        except EngineLost:
            self.kill()
            raise
        if isinstance(first, Refused):
            self.kill()
            raise ModelRefused(first.message)
        assert isinstance(first, Ready)
        self._seen_at = time.monotonic()
        threading.Thread(target=self._read, name="engine-reader", daemon=True).start()
        threading.Thread(target=self._watch, name="engine-watchdog", daemon=True).start()
        return first

    def send(self, command: Command) -> None:
        """Tell the engine. A dead engine hears nothing: ``on_lost`` speaks for it."""
        if self._connection is None:
            return
        with self._sending, contextlib.suppress(OSError):
            self._connection.send_bytes(encode(command))

    def halt(self, timeout_s: float) -> bool:
        """Have it report every token that it computed, and forget all jobs. False if that takes longer."""
        self.send(Halt())
        return self._halted.wait(timeout_s)

    def kill(self) -> None:
        """End it at once, quietly: ``on_lost`` is not told."""
        self._stopping = True
        self._end()

    @property
    def silent_s(self) -> float:
        """Seconds since it last finished a step or said that it has nothing to do."""
        return time.monotonic() - self._seen_at

    def _reap(self) -> None:
        """Let it end by itself, for its exit status says why; not for long."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(REAP_S)
        self._end()

    def _end(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()

    def _read(self) -> None:
        assert self._connection is not None
        reason = "engine_died"
        try:
            while True:
                message = decode(self._connection.recv_bytes())
                if isinstance(message, Halted):
                    self._halted.set()
                    continue
                assert isinstance(message, Report)
                # A beat without a new step is a sign of life only from an engine with nothing to do.
                if message.steps != self._steps or not (message.running or message.waiting):
                    self._steps, self._seen_at = message.steps, time.monotonic()
                self._on_report(message)
        except (EOFError, OSError):
            pass
        except Exception as error:
            log_defect(log, "engine_spoke_nonsense", error)
            reason = "engine_broken"
        self._halted.set()  # nothing more will come
        if self._stopping:
            return
        if self._is_hung:
            reason = "engine_hung"
        self._reap()
        log.error("engine_lost", reason=reason, end=self.end)
        self._on_lost(self, reason)

    def _watch(self) -> None:
        assert self._process is not None
        pause, every_s = threading.Event(), min(1.0, self._settings.watchdog_s / 4)
        looked_at = time.monotonic()
        while self._process.poll() is None:
            now = time.monotonic()
            if now - looked_at > 2 * every_s:
                # It was us who did not look: a frozen worker knows nothing of its engine's silence.
                self._seen_at = now
            looked_at = now
            if self.silent_s > self._settings.watchdog_s:
                # Killing it ends the reader, which reports the loss.
                self._is_hung = True
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                return
            pause.wait(every_s)
