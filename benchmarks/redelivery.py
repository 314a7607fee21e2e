"""The baseline of ``benchmarks.recovery``: when plain Celery over Redis delivers the task of a killed worker again.

Tasks are acknowledged late, as one does so that a dead worker's task is not lost; the transport's visibility timeout is
set, everything else is Celery's default.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import redis
from celery import Celery

SERVER, TIMEOUT = "REDELIVERY_SERVER", "REDELIVERY_TIMEOUT_S"
STARTS = "redelivery:starts"
WORK_S = 3600.0
DEFAULT_TIMEOUT_S = 3600
"""Celery's own visibility timeout: https://docs.celeryq.dev/en/stable/getting-started/backends-and-brokers/redis.html"""

app = Celery("redelivery", broker=os.environ.get(SERVER, "redis://"))
app.conf.update(
    task_acks_late=True,
    broker_transport_options={"visibility_timeout": float(os.environ.get(TIMEOUT, DEFAULT_TIMEOUT_S))},
    broker_connection_retry_on_startup=True,
)


@app.task(name="redelivery.work", ignore_result=True)
def work() -> None:
    """Note the start, and run until killed."""
    with redis.Redis.from_url(os.environ[SERVER]) as client:
        client.rpush(STARTS, os.getpid())
    time.sleep(WORK_S)


def measure(url: str, timeout_s: float, patience_s: float) -> float | None:
    """Seconds from the kill of a worker to its task's next start elsewhere; None if that takes over ``patience_s``."""
    environ = {**os.environ, SERVER: url, TIMEOUT: str(timeout_s)}
    app.conf.update(broker_url=url)
    workers = [_start(environ)]
    with redis.Redis.from_url(url) as client:
        try:
            work.delay()
            _wait(client, 1, patience_s)
            workers.append(_start(environ))
            os.killpg(workers[0].pid, signal.SIGKILL)
            killed_at = time.monotonic()
            return time.monotonic() - killed_at if _wait(client, 2, patience_s) else None
        finally:
            for worker in workers:
                if worker.poll() is None:
                    os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()
            app.close()


def _start(environ: dict[str, str]) -> subprocess.Popen[bytes]:
    command = ["-m", "celery", "--quiet", "-A", "benchmarks.redelivery", "worker", "--concurrency", "1"]
    return subprocess.Popen(
        [sys.executable, *command, "--loglevel", "CRITICAL"],
        env=environ,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _wait(client: redis.Redis, starts: int, patience_s: float) -> bool:
    """Whether the task was started so often before the patience ended."""
    deadline = time.monotonic() + patience_s
    while client.llen(STARTS) < starts:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
