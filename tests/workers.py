"""Real workers for tests: a process each, with its log in a file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

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
        self.port = settings.get("TELEMETRY__PORT")
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

    def has_engine(self) -> bool:
        """Whether it has an engine process now."""
        return any("workers.engine" in p.cmdline() for p in psutil.Process(self.process.pid).children())

    @property
    def generated(self) -> int:
        """How many tokens its engine has sampled, by the engine's own log. For a worker that has had one engine."""
        steps = [line for line in self.log.splitlines() if '"event": "step"' in line and line.endswith("}")]
        return int(json.loads(steps[-1])["generated"]) if steps else 0

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a page at its telemetry port; 0 while nobody listens there."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, refusal.read().decode()
        except OSError:
            return 0, ""

    def ready(self) -> str:
        """ "ready", why it is not, or "" while nobody listens."""
        status, body = self.get("/readyz")
        said: dict[str, Any] = json.loads(body) if body else {}
        assert status == {True: 200, False: 503, None: 0}[said.get("ready")]
        return "ready" if said.get("ready") else str(said.get("reason", ""))

    def held(self) -> int:
        """How many jobs it runs, as the ledger has it."""
        return int(self.jobs.client.scard(keys.held(self.id or "")))  # type: ignore[arg-type]

    def send(self, how: signal.Signals) -> None:
        self.process.send_signal(how)

    def freeze(self, *, alone: bool = False) -> None:
        """Stop it where it is, with its engine unless ``alone``."""
        (os.kill if alone else os.killpg)(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.killpg(self.process.pid, signal.SIGCONT)

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
