"""A place where a worker runs: one process after the other, under the same name or a new one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import psutil

from tests.chaos.proxy import FaultProxy
from tests.chaos.record import Gone, Recorder

UP = b"worker_started"  # what a worker logs once it has joined the farm


class Place:
    """Starts, signals and freezes the worker of one place, and records each end of one. Thread-safe."""

    def __init__(
        self,
        name: str,
        proxy: FaultProxy | None,
        module: str,
        environment: Mapping[str, str],
        logs: Path,
        recorder: Recorder,
    ) -> None:
        """module: what is run.  environment: all of it but the worker's name."""
        self.name = name
        self.proxy = proxy
        self.worker = name
        self._module = module
        self._environment = environment
        self._logs = logs
        self._recorder = recorder
        self._lock = threading.RLock()
        self._lives = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted, self._asked_at, self._log_start = "", 0.0, 0
        self._frozen: list[psutil.Process] = []

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def is_leaving(self) -> bool:
        """Whether its worker still runs, and was asked to end."""
        return bool(self._wanted) and self.is_running

    @property
    def has_fallen(self) -> bool:
        """Whether its worker has ended and nobody had asked it to."""
        return self._process is not None and not self._wanted and self._process.poll() is not None

    def start(self, *, as_new: bool = False) -> bool:
        """Start a worker if none runs, under a new name if ``as_new``. False while the old one still runs."""
        with self._lock:
            if self.is_running:
                return False
            self.note_end()
            self._lives += 1
            if as_new:
                self.worker = f"{self.name}.{self._lives}"
            with self._log.open("ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    [sys.executable, "-m", self._module],
                    env={**self._environment, "FARM_WORKER__NAME": self.worker},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self._wanted = ""
            return True

    def signal(self, how: signal.Signals, *, with_engine: bool = False) -> bool:
        """Ask the worker to end. False if none runs."""
        with self._lock:
            if self._process is None or not self.is_running:
                return False
            self._wanted = "terminate" if how is signal.SIGTERM else "kill"
            self._asked_at = self._recorder.now
            if with_engine:
                os.killpg(self._process.pid, how)
            else:
                self._process.send_signal(how)
            return True

    def end(self, timeout_s: float) -> bool:
        """Wait until the worker has ended; kill it when it takes too long. Whether it ended in time."""
        if self._process is None:
            return True
        in_time = True
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            in_time = False
            self.kill()
        self.note_end()
        return in_time

    def kill(self) -> None:
        """End whatever runs here, now."""
        # Not once it has been waited for: its number may be somebody else's by then.
        if self._process is not None and self.is_running:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def note_end(self) -> None:
        """Record the end of a worker that has ended, once."""
        with self._lock:
            if self._process is None or self._process.poll() is None:
                return
            now = self._recorder.now
            took_s = now - self._asked_at if self._wanted else 0.0
            was_up = UP in self._log.read_bytes()[self._log_start :]
            self._recorder.add(Gone(now, self.worker, self._process.returncode, self._wanted, was_up, took_s))
            self._process = None

    def freeze(self, *, engine_only: bool) -> bool:
        """Stop the worker and its engine, or the engine alone, until ``thaw``. False if there is none."""
        with self._lock:
            family = self._engines()
            if not engine_only and self._process is not None and self.is_running:
                family.append(psutil.Process(self._process.pid))
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
            self._frozen += family
            return bool(family)

    def thaw(self) -> None:
        """Let go on what is frozen."""
        with self._lock:
            for process in self._frozen:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()
            self._frozen.clear()

    def kill_engine(self) -> bool:
        """SIGKILL the worker's engine. False if it has none."""
        engines = self._engines()
        for process in engines:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return bool(engines)

    @property
    def _log(self) -> Path:
        return self._logs / f"{self.worker}.log"

    def _engines(self) -> list[psutil.Process]:
        if self._process is None or not self.is_running:
            return []
        try:
            children = psutil.Process(self._process.pid).children()
            return [child for child in children if "--fd" in child.cmdline()]
        except psutil.NoSuchProcess:
            return []
