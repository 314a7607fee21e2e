"""A contender's processes as the session sees them: started, told to generate, measured, ended.

CPU seconds and memory are those of the whole process tree: a farm's server and workers count.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from benchmarks.compare.contender import Contender, Outputs, Request

ROOT = Path(__file__).parents[2]
LIMIT_S = 900.0
"""A contender that says nothing for so long is ended."""
CLOSE_S = 30.0


class Missing(Exception):
    """The contender can't take part; the message says why."""


class Lost(Exception):
    """The contender's process ended or was silent for too long; the message has its last words."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run: what came out, and what it took."""

    outputs: Outputs
    wall_s: float
    cpu_s: float
    peak_bytes: int | None
    facts: dict[str, float]


class Host:
    """A contender that has loaded its model. Use it in a ``with``, or ``close`` it."""

    def __init__(self, contender: Contender, folder: Path, log_path: Path, python: str = sys.executable) -> None:
        """Start it and wait until its model is loaded. Raises Missing or Lost."""
        self.contender = contender
        self._log_path = log_path
        with log_path.open("w") as log:
            self._process = subprocess.Popen(
                [python, "-m", "benchmarks.compare.child", contender.runner],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environ(contender),
            )
        try:
            answer = self._ask({"folder": str(folder), "options": dict(contender.options)})
        except BaseException:
            self.close()
            raise
        if "missing" in answer:
            self.close()
            raise Missing(answer["missing"])

    def run(self, requests: list[Request]) -> Run:
        """Generate for all requests. Raises Lost, or AssertionError for a wrong length."""
        self._forget_peak()
        before_s = self.cpu_s()
        answer = self._ask(requests)
        outputs: Outputs = answer["outputs"]
        lengths = [len(output) for output in outputs]
        assert lengths == [tokens for _, tokens in requests], f"{self.contender.name}: a length differs: {lengths}"
        return Run(outputs, answer["wall_s"], self.cpu_s() - before_s, self._peak_bytes(), answer["facts"])

    def cpu_s(self) -> float:
        """CPU seconds that its living processes have taken so far."""
        total = 0.0
        for process in self._family():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def close(self) -> None:
        """Let it end, and end what is left of it."""
        family = self._family()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_S)
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _ask(self, question: object) -> dict[str, Any]:
        """Send a line and read one. Raises Lost."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        timer = threading.Timer(LIMIT_S, self._process.kill)
        timer.start()
        try:
            with contextlib.suppress(OSError):
                self._process.stdin.write(json.dumps(question) + "\n")
                self._process.stdin.flush()
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            tail = self._log_path.read_text(errors="replace")[-1500:].strip()
            raise Lost(f"{self.contender.name} ended or was silent for {LIMIT_S:g} s; its last words: {tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _family(self) -> list[psutil.Process]:
        try:
            first = psutil.Process(self._process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _forget_peak(self) -> None:
        """Start the peaks of memory anew, so that loading does not count."""
        for process in self._family():
            with contextlib.suppress(OSError):
                Path(f"/proc/{process.pid}/clear_refs").write_text("5")

    def _peak_bytes(self) -> int | None:
        """The peaks of resident memory of all processes, added up; None where the system has no such figure."""
        peaks = []
        for process in self._family():
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                peaks += [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
        return sum(peaks) if peaks else None


def environ(contender: Contender, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """A contender's environment: no settings of the farm but its own, and the way to this package."""
    base = os.environ if base is None else base
    kept = {name: text for name, text in base.items() if not name.startswith("FARM_")}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH", "")]))
    return {**kept, "PYTHONPATH": path, **contender.settings, **contender.environ}
