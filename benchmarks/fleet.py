"""Real workers on a server of their own, for benchmarks that kill them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from farm import keys
from farm.contracts import parse_request
from farm.ledger.jobs import Jobs
from farm.local.server import EmbeddedServer
from farm.settings import load_settings

PATIENCE_S = 180.0


class Worker:
    """A worker process that the farm knows; ``settings`` are FARM_ names without the prefix."""

    def __init__(self, jobs: Jobs, name: str, **settings: object) -> None:
        named = {"REDIS__URL": url_of(jobs), "WORKER__NAME": name, "LOGS__LEVEL": "ERROR", **settings}
        clean = {key: value for key, value in os.environ.items() if not key.startswith("FARM_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workers"],
            env={**clean, **{f"FARM_{key}": str(value) for key, value in named.items()}},
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(lambda: jobs.client.hget(keys.NAMES, name))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.kill()

    @property
    def engine(self) -> psutil.Process:
        """Its engine process."""
        [engine] = [p for p in psutil.Process(self.process.pid).children() if "workers.engine" in p.cmdline()]
        return engine

    def kill(self) -> None:
        """Kill it with its engine."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def empty_farm() -> Iterator[Jobs]:
    """The ledger on an embedded server, without a worker."""
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer(Path(folder))
        server.start()
        jobs = Jobs(load_settings({}, redis={"url": server.url}))
        try:
            yield jobs
        finally:
            jobs.client.close()
            server.stop()


def url_of(jobs: Jobs) -> str:
    """Its server, password and all."""
    assert jobs.settings.redis.url is not None
    return jobs.settings.redis.url.get_secret_value()


def submit(jobs: Jobs, count: int, **values: object) -> list[str]:
    """Submit prompts that differ; returns their ids."""
    placed = [jobs.place(parse_request({"prompt": f"prompt number {number}", **values})) for number in range(count)]
    jobs.submit(placed)
    return [submission.id for submission in placed]


def run_jobs(jobs: Jobs, count: int, tokens: int) -> list[str]:
    """Submit jobs, and return once all have some tokens."""
    ids = submit(jobs, count, max_tokens=tokens)
    wait_for(lambda: all(jobs.client.llen(keys.out(job_id)) for job_id in ids))
    return ids


def wait_for(condition: Callable[[], object], every_s: float = 0.02) -> None:
    """Return when it holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:g} s in vain"
        time.sleep(every_s)
