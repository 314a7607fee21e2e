"""The parts of a local farm, each one child process: how it starts, how it is asked to end and how it is made to.

A part knows nothing of the others and restarts nothing; ``farm.local.supervisor`` does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from farm.local.server import EmbeddedServer
from farm.local.tether import launcher

REFUSED = 78  # how a worker ends that can't serve its model (EX_CONFIG)
SERVER_START_S = 120.0  # a long append-only file is read back before the server answers
SERVER_STOP_S = 10.0
LAST_BYTES = 8192


class Part(Protocol):
    """One supervised child."""

    name: str
    log_path: Path
    rank: int
    """Parts of a lower rank end first."""
    stop_s: float
    """How long it may take to end before it is killed."""
    is_essential: bool
    """Whether nothing works without it."""
    is_disposable: bool
    """Whether it may be killed at once when somebody is in a hurry."""

    @property
    def pid(self) -> int | None:
        """Its process, while there is one."""

    def start(self) -> None:
        """Start it, or start it again."""

    def ended(self) -> int | None:
        """Its exit status once it has ended, negative for a signal; None while it runs or was never started."""

    def terminate(self) -> None:
        """Ask it to end; returns at once."""

    def kill(self) -> None:
        """End it and whatever it started."""

    def last_words(self) -> str:
        """The last thing that it wrote."""


class Program:
    """A Python program of ours in a session of its own, so that a Ctrl-C reaches the supervisor alone."""

    is_disposable = True

    def __init__(
        self,
        name: str,
        module: str,
        log_path: Path,
        environ: Callable[[], dict[str, str]],
        *,
        rank: int,
        stop_s: float,
        is_essential: bool,
    ) -> None:
        self.name = name
        self.module = module
        self.log_path = log_path
        self.rank = rank
        self.stop_s = stop_s
        self.is_essential = is_essential
        self._environ = environ
        self._process: subprocess.Popen[bytes] | None = None
        self._said_from = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        # SIGKILL: a worker without its supervisor may be without its server too, and nobody would end it.
        command = [*launcher(signal.SIGKILL), sys.executable, "-m", self.module]
        with self.log_path.open("ab") as log:
            self._said_from = log.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environ(),
                start_new_session=True,
            )

    def ended(self) -> int | None:
        return self._process.poll() if self._process else None

    def terminate(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def last_words(self) -> str:
        with contextlib.suppress(OSError), self.log_path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(self._said_from, log.tell() - LAST_BYTES))
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
            # A line meant for people counts more than whatever was logged after it.
            for_people = [line for line in lines if line.startswith("farm ")]
            return _words((for_people or lines or [""])[-1])
        return ""


class Server:
    """The embedded server as a part. It gets its time to write its data, even if we are killed or in a hurry."""

    name = "redis"
    rank = 9
    stop_s = SERVER_STOP_S
    is_essential = True
    is_disposable = False

    def __init__(self, server: EmbeddedServer) -> None:
        self.server = server
        self.server.launcher = launcher(signal.SIGTERM)
        self.log_path = server.log_path or server.folder / "server.log"
        self._was_started = False

    @property
    def pid(self) -> int | None:
        return self.server.pid

    def start(self) -> None:
        self._was_started = True
        self.server.start(SERVER_START_S)

    def ended(self) -> int | None:
        return self.server.returncode if self._was_started else None

    def terminate(self) -> None:
        if self.server.is_running() and self.server.pid is not None:
            os.kill(self.server.pid, signal.SIGTERM)

    def kill(self) -> None:
        self.server.kill()

    def last_words(self) -> str:
        return ""


def wait_for_end(parts: Sequence[Part], hurry: Callable[[], bool]) -> None:
    """Return when all have ended, have had their time to, or somebody is in a hurry."""
    began = time.monotonic()
    while any(
        part.pid is not None and part.ended() is None and time.monotonic() - began < part.stop_s for part in parts
    ):
        if hurry():
            return
        time.sleep(0.02)


def _words(line: str) -> str:
    """A log line as people read it: without the program's name, and out of its JSON."""
    if line.startswith("farm "):
        return line.partition(": ")[2]
    with contextlib.suppress(ValueError):
        body = json.loads(line)
        if isinstance(body, dict):
            return " ".join(str(body[name]) for name in ("event", "error") if body.get(name))
    return line
