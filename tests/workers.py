"""Real workers for tests: a process each, with its log in a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from farm import keys
from farm.ledger.jobs import Jobs
from tests.conftest import wait_until

PLAIN_CELERY = ("-m", "celery", "--quiet", "-A", "workers.app", "worker")


class WorkerProcess:
    """One worker. ``settings`` are FARM_ names without the prefix, as ENGINE__MAX_SLOTS=4."""

    def __init__(
        self, jobs: Jobs, folder: Path, name: str, *, command: tuple[str, ...] = ("-m", "workers"), **settings: object
    ) -> None:
        url = jobs.settings.redis.url
        assert url is not None
        self.jobs = jobs
        self.name = name
        self.log_path = folder / f"{name}.log"
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("FARM_")},
            "FARM_REDIS__URL": url.get_secret_value(),
            "FARM_WORKER__NAME": name,
            "FARM_ENGINE__KIND": "synthetic",
            "FARM_LOGS__FORMAT": "json",
            "FARM_LOGS__LEVEL": "DEBUG",
            "FARM_ENGINE__THREADS": "1",
            **{f"FARM_{key}": str(value) for key, value in settings.items()},
        }
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8")

    @property
    def id(self) -> str | None:
        found: str | None = self.jobs.client.hget(keys.PREFIX + "names", self.name)  # type: ignore[assignment]
        return found

    def wait_ready(self) -> WorkerProcess:
        """Return once the farm knows it."""
        wait_until(
            lambda: self.id is not None or self.process.poll() is not None, why=f"{self.name} to start", timeout_s=60
        )
        assert self.process.poll() is None, self.log
        return self

    @property
    def engine(self) -> psutil.Process:
        """Its engine process."""
        [engine] = [p for p in psutil.Process(self.process.pid).children() if "workers.engine" in p.cmdline()]
        return engine

    def held(self) -> int:
        """How many jobs it runs, as the ledger has it."""
        return int(self.jobs.client.scard(keys.held(self.id or "")))  # type: ignore[arg-type]

    def send(self, how: signal.Signals) -> None:
        self.process.send_signal(how)

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.kill()

    def kill(self) -> None:
        """End it as a crash would, with its engine."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self, timeout_s: float = 30.0) -> int:
        return self.process.wait(timeout_s)
