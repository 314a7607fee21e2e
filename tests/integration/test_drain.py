"""A worker or a whole farm that is asked to end hands back what it runs, soon, and nothing is lost or charged."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from farm import keys
from farm.contracts import JobState
from farm.ledger.jobs import Jobs
from farm.local.server import EmbeddedServer, free_port
from farm.results import JobView
from farm.settings import load_settings
from tests.commands import running, wait_until_gone
from tests.conftest import wait_until
from tests.integration.conftest import StartWorker, submit, wait_for_all
from tests.workers import WorkerProcess

pytestmark = pytest.mark.alone

JOBS, TOKENS = 32, 400
IN_TIME_S = 5.0  # the promise
SLOW = {"ENGINE__SYNTHETIC_STEP_S": 0.02, "LEASE__LEASE_S": 600}


def _all_run(jobs: Jobs, ids: list[str]) -> bool:
    return all(int(jobs.client.llen(keys.out(job_id))) >= 5 for job_id in ids)  # type: ignore[arg-type]


def _uncharged(jobs: Jobs, ids: list[str]) -> bool:
    """Whether no strike, loss or retry stands against these jobs."""
    names = ["strikes", "losses", "retries"]
    return all(set(jobs.client.hmget(keys.job(job_id), names)) <= {None, "0"} for job_id in ids)  # type: ignore[arg-type]


def _are_whole(views: list[JobView]) -> bool:
    return all(
        view.state is JobState.SUCCEEDED and len(view.token_ids) == TOKENS and view.usage.resumed_tokens >= 5
        for view in views
    )


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_full_worker_ends_in_time_and_loses_no_token(
    jobs: Jobs, start_worker: StartWorker, how: signal.Signals
) -> None:
    """With 32 long jobs in flight a worker ends within 5 s with exit code 0, charges no job, and another worker goes on
    from the very last token that was sampled."""
    first = start_worker("w1", **SLOW)
    ids = submit(jobs, JOBS, max_tokens=TOKENS)
    wait_until(lambda: _all_run(jobs, ids), why="all jobs to run")
    asked_at = time.monotonic()
    first.send(how)
    assert first.wait() == 0
    assert time.monotonic() - asked_at < IN_TIME_S
    assert "Traceback" not in first.log
    assert jobs.client.zcard(keys.WORKERS) == 0
    assert jobs.client.hget(keys.TOTALS, "released:drain") == str(JOBS)
    kept = [int(jobs.client.llen(keys.out(job_id))) for job_id in ids]  # type: ignore[arg-type]
    assert first.generated == sum(kept)
    second = start_worker("w2")
    views = wait_for_all(jobs, ids)
    assert _are_whole(views)
    assert second.generated == sum(TOKENS - count for count in kept)
    assert all([past.reason for past in view.history] == ["drain", "finish"] for view in views)
    assert _uncharged(jobs, ids)


def test_a_whole_farm_ends_in_time_and_goes_on_later(tmp_path: Path) -> None:
    """SIGTERM to ``farm up`` with 32 long jobs in flight ends all of it; the next one in the folder finishes them."""
    with running(tmp_path, "--workers", 2, **SLOW) as up:
        jobs = Jobs(load_settings(redis={"url": up.url}))
        ids = submit(jobs, JOBS, max_tokens=TOKENS)
        wait_until(lambda: _all_run(jobs, ids), why="all jobs to run")
        jobs.client.close()
        family = up.family()
        asked_at = time.monotonic()
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(30) == 0
        assert time.monotonic() - asked_at < IN_TIME_S
        wait_until_gone(family)
    with running(tmp_path, "--no-flower") as later:
        jobs = Jobs(load_settings(redis={"url": later.url}))
        assert _are_whole(wait_for_all(jobs, ids))
        assert _uncharged(jobs, ids)
        jobs.client.close()


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server of the test's own, to be frozen."""
    server = EmbeddedServer(tmp_path / "redis", appendfsync="always")
    server.start()
    yield server
    server.kill()


def test_a_second_signal_does_not_wait(mortal: EmbeddedServer, tmp_path: Path) -> None:
    """A worker that can't hand back, since the server is silent, goes on trying and tells probes; asked again it ends
    at once. Its jobs end elsewhere."""
    jobs = Jobs(load_settings(redis={"url": mortal.url}))
    patient = {**SLOW, "LEASE__LEASE_S": 2, "WORKER__DRAIN_S": 60, "TELEMETRY__PORT": free_port()}
    with WorkerProcess(jobs, tmp_path, "w1", **patient) as worker:
        wait_until(lambda: worker.ready() == "ready", why="the worker to be ready")
        ids = submit(jobs, 4, max_tokens=TOKENS)
        wait_until(lambda: _all_run(jobs, ids), why="all jobs to run")
        server = psutil.Process(mortal.pid)
        server.suspend()
        wait_until(lambda: worker.ready() == "server unreachable", why="the worker to notice")
        worker.send(signal.SIGTERM)
        wait_until(lambda: worker.ready() == "draining", why="the drain to begin")
        assert worker.get("/livez") == (200, '{"alive": true}\n')
        engine = worker.engine
        asked_at = time.monotonic()
        worker.send(signal.SIGINT)
        assert worker.wait() == 128 + signal.SIGINT
        assert time.monotonic() - asked_at < 3, "it waited for more than half a second"
        wait_until_gone([engine])
        server.resume()
    with WorkerProcess(jobs, tmp_path, "w2", LEASE__LEASE_S=2) as second:
        second.wait_ready()
        assert _are_whole(wait_for_all(jobs, ids))
    jobs.client.close()


def test_a_worker_that_was_only_just_started_ends_quietly(jobs: Jobs, tmp_path: Path) -> None:
    """SIGTERM while Python still loads the worker's modules is no crash."""
    worker = WorkerProcess(jobs, tmp_path, "w1")
    status = Path(f"/proc/{worker.process.pid}/status")
    term = 1 << (signal.SIGTERM - 1)

    def has_handler() -> bool:
        caught = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt"))
        return bool(int(caught.split()[1], 16) & term)

    wait_until(has_handler, why="the first handler to be installed")
    os.kill(worker.process.pid, signal.SIGTERM)
    assert worker.wait() == 0
    assert worker.log == ""
