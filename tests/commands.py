"""The ``farm`` command as people run it: a process of its own, with nothing of this process's settings."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import wait_until

FARM = (sys.executable, "-W", "error", "-m", "farm.cli.main")
READY_S = 90.0


@dataclass(frozen=True)
class Said:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def environ(**settings: object) -> dict[str, str]:
    """This environment without settings of the farm, and these: FARM_ is put before each."""
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("FARM_", "FLOWER_"))}
    return {**clean, **{f"FARM_{name}": str(value) for name, value in settings.items()}}


def farm(*args: object, stdin: str = "", **settings: object) -> Said:
    """Run a command to its end."""
    done = subprocess.run(
        [*FARM, *map(str, args)],
        input=stdin,
        env=environ(**settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Said(done.returncode, done.stdout, done.stderr)


@dataclass
class Up:
    """A ``farm up --json`` that runs, and what it says."""

    process: subprocess.Popen[str]
    state_dir: Path
    ready: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """What leads other commands to it."""
        return {"LOCAL__STATE_DIR": self.state_dir}

    @property
    def url(self) -> str:
        """Its server, password and all, as the note in its folder has it."""
        return str(json.loads((self.state_dir / "farm.json").read_text())["redis_url"])

    def next(self) -> dict[str, Any]:
        """The next event. Waits for it."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"farm up has ended: {self.process.stderr.read() if self.process.stderr else ''}"
        event: dict[str, Any] = json.loads(line)
        return event

    def family(self) -> list[psutil.Process]:
        """Its parts and whatever they started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def interrupt(self) -> int:
        """Ctrl-C, and wait for the end. Returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


@contextlib.contextmanager
def running(state_dir: Path, *args: object, **settings: object) -> Iterator[Up]:
    """A farm with synthetic workers that is ready; stopped at the end, if it still runs."""
    command = [*FARM, "up", "--json", "--state-dir", str(state_dir), *map(str, args)]
    process = subprocess.Popen(
        command,
        env=environ(**{"ENGINE__KIND": "synthetic", **settings}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    family: list[psutil.Process] = []
    try:
        up = Up(process, state_dir, {})
        up.ready = up.next()
        family = up.family()
        yield up
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
        process.kill()
        process.communicate()
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def wait_until_gone(family: list[psutil.Process]) -> None:
    """Return when all of these processes have ended."""
    wait_until(lambda: not any(is_alive(child) for child in family), why=f"the end of {family}")


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
