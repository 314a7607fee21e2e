"""A real worker process: what it answers, and what happens when parts of it die."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from farm import keys
from farm.contracts import JobState
from farm.ledger.jobs import Jobs
from farm.local.server import EmbeddedServer
from farm.settings import load_settings
from tests.conftest import wait_until
from tests.integration.conftest import StartWorker, submit, wait_for_all
from tests.workers import PLAIN_CELERY, WorkerProcess

LONG = {"max_tokens": 400}
SLOW = {"ENGINE__SYNTHETIC_STEP_S": 0.01}


def _has_tokens(jobs: Jobs, job_id: str, least: int = 1) -> bool:
    return int(jobs.client.llen(keys.out(job_id))) >= least  # type: ignore[arg-type]


@pytest.mark.parametrize("command", [("-m", "workers"), PLAIN_CELERY], ids=["farm worker", "plain celery"])
def test_answers_jobs_however_it_is_started(jobs: Jobs, start_worker: StartWorker, command: tuple[str, ...]) -> None:
    """``farm worker`` and ``celery -A workers.app worker`` both start a worker that answers jobs."""
    worker = start_worker(command=command)
    views = wait_for_all(jobs, submit(jobs, 40, max_tokens=5))
    assert {view.state for view in views} == {JobState.SUCCEEDED}
    assert all(len(view.token_ids) == 5 and view.finish_reason == "length" for view in views)
    assert all(view.usage.prompt_tokens == 3 and view.attempt == 1 and view.worker == worker.id for view in views)
    assert all(view.model_fingerprint and view.timings.total_s is not None for view in views)


def test_killed_worker_loses_nothing(jobs: Jobs, start_worker: StartWorker) -> None:
    """Jobs of a worker that was killed go on elsewhere from their last checkpoint, with the same text."""
    reference = start_worker("w0")
    ids = submit(jobs, 1, **LONG)
    [expected] = wait_for_all(jobs, ids)
    reference.send(signal.SIGTERM)
    reference.wait()

    doomed = start_worker("w1", LEASE__LEASE_S=2, **SLOW)
    [job_id] = submit(jobs, 1, **LONG)
    wait_until(lambda: _has_tokens(jobs, job_id, 20), why="some tokens to be checkpointed")
    doomed.engine.suspend()  # or it might be through before the other one is there
    other = start_worker("w2", LEASE__LEASE_S=2)
    doomed.kill()
    [view] = wait_for_all(jobs, [job_id])
    assert view.text == expected.text
    assert view.token_ids == expected.token_ids
    assert view.worker == other.id
    assert view.usage.resumed_tokens >= 20
    assert [record.reason for record in view.history] == ["lease_ended", "finish"]
    assert view.strikes == 0


def test_restarted_worker_gets_its_jobs_back_at_once(jobs: Jobs, start_worker: StartWorker) -> None:
    """A worker that comes back under its name does not wait for its old leases to end."""
    first = start_worker("w1", LEASE__LEASE_S=600, **SLOW)
    [job_id] = submit(jobs, 1, **LONG)
    wait_until(lambda: _has_tokens(jobs, job_id), why="a token")
    first.kill()
    start_worker("w1", LEASE__LEASE_S=600)
    [view] = wait_for_all(jobs, [job_id], timeout_s=30)
    assert view.state is JobState.SUCCEEDED
    assert view.history[0].reason == "worker_restarted"


def test_terminated_worker_hands_its_jobs_over(jobs: Jobs, start_worker: StartWorker) -> None:
    """SIGTERM drains: every job is released with its tokens, nobody is struck, and another worker goes on."""
    draining = start_worker("w1", ENGINE__MAX_SLOTS=8, LEASE__LEASE_S=600, **SLOW)
    ids = submit(jobs, 8, **LONG)
    wait_until(lambda: all(_has_tokens(jobs, job_id) for job_id in ids), why="all jobs to run")
    draining.send(signal.SIGTERM)
    assert draining.wait() == 0
    released = [view for view in jobs.views(ids) if view is not None]
    assert all(view.state in (JobState.QUEUED, JobState.DISPATCHED) for view in released)
    assert all(view.history[0].reason == "drain" and view.strikes == 0 for view in released)
    assert jobs.client.zcard(keys.WORKERS) == 0
    start_worker("w2", ENGINE__MAX_SLOTS=8)
    views = wait_for_all(jobs, ids)
    assert all(view.state is JobState.SUCCEEDED and view.usage.resumed_tokens > 0 for view in views)


def test_killed_engine_is_replaced(jobs: Jobs, start_worker: StartWorker) -> None:
    """When its engine dies a worker releases its jobs at once, starts another engine and goes on."""
    worker = start_worker("w1", LEASE__LEASE_S=600, **SLOW)
    ids = submit(jobs, 4, **LONG)
    wait_until(lambda: all(_has_tokens(jobs, job_id) for job_id in ids), why="all jobs to run")
    old = worker.engine
    old.kill()
    views = wait_for_all(jobs, ids)
    assert all(view.state is JobState.SUCCEEDED and len(view.token_ids) == 400 for view in views)
    assert all([record.reason for record in view.history] == ["engine_died", "finish"] for view in views)
    assert worker.engine.pid != old.pid
    assert worker.process.poll() is None


def test_hung_engine_is_replaced(jobs: Jobs, start_worker: StartWorker) -> None:
    """An engine that finishes no step within its watchdog is killed and replaced."""
    worker = start_worker("w1", LEASE__LEASE_S=600, ENGINE__WATCHDOG_S=1, **SLOW)
    [job_id] = submit(jobs, 1, **LONG)
    wait_until(lambda: _has_tokens(jobs, job_id), why="a token")
    worker.engine.suspend()
    [view] = wait_for_all(jobs, [job_id])
    assert view.state is JobState.SUCCEEDED
    assert view.history[0].reason == "engine_hung"


def test_engine_dies_with_its_worker(jobs: Jobs, start_worker: StartWorker) -> None:
    """A worker that is killed alone leaves no engine behind."""
    worker = start_worker()
    engine = worker.engine
    os.kill(worker.process.pid, signal.SIGKILL)
    wait_until(lambda: not engine.is_running() or engine.status() == "zombie", why="the engine to end")


def test_cancel_stops_a_running_job(jobs: Jobs, start_worker: StartWorker) -> None:
    """A cancelled job keeps its text so far, and its slot is free for the next."""
    worker = start_worker("w1", ENGINE__MAX_SLOTS=1, **SLOW)
    [job_id] = submit(jobs, 1, max_tokens=2000)
    wait_until(lambda: _has_tokens(jobs, job_id), why="a token")
    assert jobs.cancel([job_id]) == [JobState.CANCELLED]
    [view] = wait_for_all(jobs, submit(jobs, 1, max_tokens=3))
    assert view.state is JobState.SUCCEEDED
    cancelled = jobs.view(job_id)
    assert cancelled.state is JobState.CANCELLED
    assert cancelled.text
    assert worker.held() == 0


def test_deadline_ends_a_running_job(jobs: Jobs, start_worker: StartWorker) -> None:
    """A job whose deadline passes expires with its text so far."""
    start_worker("w1", **SLOW)
    [view] = wait_for_all(jobs, submit(jobs, 1, max_tokens=2000, deadline_s=0.5))
    assert view.state is JobState.EXPIRED
    assert view.finish_reason == "expired"
    assert 0 < len(view.token_ids) < 2000


def test_too_long_a_prompt_fails_without_a_retry(jobs: Jobs, start_worker: StartWorker) -> None:
    """What can never fit is failed by the worker at its first attempt, and the error says by how much."""
    start_worker("w1", ENGINE__MAX_CONTEXT=64)
    [view] = wait_for_all(jobs, submit(jobs, 1, max_tokens=100))
    assert view.state is JobState.FAILED
    assert view.attempt == 1
    assert view.error is not None
    assert view.error.code == "prompt_too_long"
    assert "64" in view.error.message


def test_server_restart_under_running_jobs(jobs: Jobs, start_worker: StartWorker) -> None:
    """A worker rides through a server that forgets its scripts and drops all connections."""
    start_worker("w1", **SLOW)
    ids = submit(jobs, 4, **LONG)
    wait_until(lambda: all(_has_tokens(jobs, job_id) for job_id in ids), why="all jobs to run")
    jobs.client.script_flush()
    jobs.client.client_kill_filter(_type="normal", skipme=True)
    views = wait_for_all(jobs, ids)
    assert all(view.state is JobState.SUCCEEDED and len(view.token_ids) == 400 for view in views)


def test_heartbeat_file_lives_and_dies_with_the_worker(jobs: Jobs, start_worker: StartWorker, tmp_path: Path) -> None:
    """The heartbeat file is touched while the worker works, and gone once it has stopped."""
    beat = tmp_path / "beat"
    worker = start_worker("w1", WORKER__HEARTBEAT_FILE=beat)
    wait_until(beat.exists, why="the heartbeat file")
    worker.send(signal.SIGTERM)
    worker.wait()
    assert not beat.exists()


def test_refused_model_ends_the_worker_with_one_line(jobs: Jobs, tmp_path: Path) -> None:
    """A model that can't be served ends the worker with exit code 78 and the reason, before it takes a job."""
    worker = WorkerProcess(jobs, tmp_path, "w1", MODEL__ID=tmp_path / "nowhere", ENGINE__KIND="bloom")
    assert worker.wait(60) == 78
    line = next(line for line in worker.log.splitlines() if "model refused" in line)
    assert "nowhere" in line
    assert "Traceback" not in worker.log


def test_misspelt_setting_ends_the_worker_with_one_line(jobs: Jobs, tmp_path: Path) -> None:
    """A misspelt setting is named with the nearest one, and nothing starts."""
    worker = WorkerProcess(jobs, tmp_path, "w1", ENGINE__MAX_SLOT=3)
    assert worker.wait(60) == 78
    assert "FARM_ENGINE__MAX_SLOTS" in worker.log
    assert "Traceback" not in worker.log


def test_system_worker_dispatches_and_expires_without_an_engine(
    jobs: Jobs, start_worker: StartWorker, tmp_path: Path
) -> None:
    """A system worker needs no engine: it keeps deadlines while no model worker is there, and reports its role."""
    worker = start_worker("s1", WORKER__ROLE="system")
    assert jobs.client.hget(keys.worker(worker.id or ""), "role") == "system"
    [view] = wait_for_all(jobs, submit(jobs, 1, deadline_s=0.3))
    assert view.state is JobState.EXPIRED
    assert view.attempt == 0


def test_logs_are_structured_and_hold_no_prompt(jobs: Jobs, start_worker: StartWorker) -> None:
    """A worker logs one JSON line per job with its id, and never a prompt or a completion."""
    worker = start_worker()
    [view] = wait_for_all(jobs, submit(jobs, 1, prompt="zanzibar clandestine", max_tokens=6))
    wait_until(lambda: view.id in worker.log, why="the job's line")
    lines = [json.loads(line) for line in worker.log.splitlines() if line.startswith("{")]
    assert any(line.get("job") == view.id and line["event"] == "job" for line in lines)
    assert "zanzibar" not in worker.log
    assert view.text.strip() not in worker.log


def test_terminated_while_its_model_loads(jobs: Jobs, tmp_path: Path) -> None:
    """SIGTERM does not wait for a model to load: the worker ends, and no engine is left behind."""
    worker = WorkerProcess(jobs, tmp_path, "w1", ENGINE__KIND="bloom")
    wait_until(worker.has_engine, why="the engine process to be started")
    engine = worker.engine
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert not engine.is_running()
    assert "Traceback" not in worker.log


def test_engine_lost_while_the_server_is_away(jobs: Jobs, start_worker: StartWorker) -> None:
    """When engine and server fail together no job is stuck: it goes on once both are back."""
    start_worker("w1", LEASE__LEASE_S=2, REDIS__TIMEOUT_S=0.5, **SLOW)
    worker = start_worker("w2", LEASE__LEASE_S=2, REDIS__TIMEOUT_S=0.5, **SLOW)
    ids = submit(jobs, 8, **LONG)
    wait_until(lambda: all(_has_tokens(jobs, job_id) for job_id in ids), why="all jobs to run")
    jobs.client.client_pause(1500, all=True)
    worker.engine.kill()
    views = wait_for_all(jobs, ids)
    assert all(view.state is JobState.SUCCEEDED and len(view.token_ids) == 400 for view in views)


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server of the test's own, to be killed and frozen."""
    server = EmbeddedServer(tmp_path / "redis", appendfsync="always")
    server.start()
    yield server
    server.kill()


def test_server_killed_under_running_jobs(mortal: EmbeddedServer, tmp_path: Path) -> None:
    """When the server dies under running jobs the worker waits for it, and every job ends after its return."""
    jobs = Jobs(load_settings(redis={"url": mortal.url}))
    with WorkerProcess(jobs, tmp_path, "w1", LEASE__LEASE_S=2, **SLOW) as worker:
        worker.wait_ready()
        ids = submit(jobs, 8, max_tokens=600)
        wait_until(lambda: all(_has_tokens(jobs, job_id) for job_id in ids), why="all jobs to run")
        mortal.kill()
        wait_until(
            lambda: worker.log.count("unreachable") + worker.log.count("waits_for_server") > 1, why="it to notice"
        )
        mortal.start()
        views = wait_for_all(jobs, ids)
        assert all(view.state is JobState.SUCCEEDED and len(view.token_ids) == 600 for view in views)
        assert worker.process.poll() is None
        assert "Unrecoverable" not in worker.log
    jobs.client.close()


def test_terminated_while_the_server_is_frozen(mortal: EmbeddedServer, tmp_path: Path) -> None:
    """A worker that is terminated ends even when the server says nothing; its jobs wait for another one."""
    jobs = Jobs(load_settings(redis={"url": mortal.url}))
    with WorkerProcess(jobs, tmp_path, "w1", LEASE__LEASE_S=2, WORKER__DRAIN_S=1, **SLOW) as worker:
        worker.wait_ready()
        ids = submit(jobs, 4, **LONG)
        wait_until(lambda: all(_has_tokens(jobs, job_id) for job_id in ids), why="all jobs to run")
        server = psutil.Process(mortal.pid)
        server.suspend()
        worker.send(signal.SIGTERM)
        assert worker.wait(20) == 0
        server.resume()
    with WorkerProcess(jobs, tmp_path, "w2", LEASE__LEASE_S=2) as second:
        second.wait_ready()
        assert {view.state for view in wait_for_all(jobs, ids)} == {JobState.SUCCEEDED}
    jobs.client.close()
