"""Engines that die again and again: the worker stops taking jobs, says why, and recovers by itself."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil
import pytest

from benchmarks.compare.plan import CASES
from benchmarks.workload import save_bloom
from farm import keys
from farm.contracts import JobState
from farm.ledger.jobs import Jobs
from farm.ledger.overview import WorkerView, overview
from farm.local.server import free_port
from tests.commands import farm
from tests.conftest import wait_until
from tests.integration.conftest import StartWorker, submit, wait_for_all
from tests.integration.test_metrics import scrape
from tests.workers import WorkerProcess

pytestmark = pytest.mark.alone

MAX_DEATHS = 2


def _next_engine(worker: WorkerProcess, before: int | None) -> psutil.Process:
    """The engine that comes after the one with this process id, still loading."""

    def is_there() -> bool:
        with contextlib.suppress(ValueError, psutil.NoSuchProcess):
            return worker.engine.pid != before
        return False

    wait_until(is_there, why="the next engine to be started")
    return worker.engine


def _break_engine(worker: WorkerProcess) -> psutil.Process:
    """Kill as many engines as make it failing. Returns the one after them, stopped."""
    engine = worker.engine
    for _ in range(MAX_DEATHS):
        engine.kill()
        engine = _next_engine(worker, engine.pid)
    engine.suspend()
    return engine


def _seen(jobs: Jobs, name: str) -> WorkerView:
    [worker] = [worker for worker in overview(jobs).workers if worker.name == name]
    return worker


def test_a_failing_engine_gets_no_jobs_until_it_works_again(jobs: Jobs, start_worker: StartWorker) -> None:
    """After repeated deaths the worker has room for nothing and claims nothing; its probe, the ledger and the command
    say why. Once an engine lives it takes jobs again, without anybody's help."""
    port = free_port()
    worker = start_worker("w1", ENGINE__MAX_DEATHS=MAX_DEATHS, ENGINE__RESPAWN_CAP_S=0.2, TELEMETRY__PORT=port)
    wait_until(lambda: worker.ready() == "ready", why="the worker to be ready")
    wait_for_all(jobs, submit(jobs, 4, max_tokens=3))
    engine = _break_engine(worker)
    reason = f"engine failing: {MAX_DEATHS} deaths in a row, the latest: "
    wait_until(lambda: worker.ready().startswith(reason), why="the reason at /readyz")
    assert worker.ready().endswith("was ended by SIGKILL while loading its model; its last words are in the log")
    assert worker.get("/livez") == (200, '{"alive": true}\n')
    wait_until(lambda: "failing" in _seen(jobs, "w1").trouble, why="the reason in the ledger")
    seen = _seen(jobs, "w1")
    assert (seen.slots, seen.is_alive, seen.trouble) == (0, True, worker.ready())
    url = jobs.settings.redis.url
    assert url is not None
    assert "engine failing" in farm("status", REDIS__URL=url.get_secret_value()).out
    ids = submit(jobs, 4, max_tokens=3)
    _let_the_keeper_look(jobs)
    assert {view.state for view in jobs.views(ids) if view} == {JobState.QUEUED}
    engine.resume()
    wait_until(lambda: worker.ready() == "ready", why="the worker to recover")
    views = wait_for_all(jobs, ids)
    assert all(view.state is JobState.SUCCEEDED and view.attempt == 1 for view in views)
    assert scrape(port)["farm_engine_restarts_total"] == MAX_DEATHS
    wait_until(lambda: _seen(jobs, "w1").trouble == "", why="the trouble to be over in the ledger too")
    assert _seen(jobs, "w1").slots == 64


def _let_the_keeper_look(jobs: Jobs) -> None:
    """Wake it twice: when it takes the second wake-up, it has done what the first one was for."""
    for _ in range(2):
        wait_until(lambda: jobs.client.llen(keys.WAKE) == 0, why="the keeper to take its wake-up")
        jobs.client.rpush(keys.WAKE, "1")
    wait_until(lambda: jobs.client.llen(keys.WAKE) == 0, why="the keeper to look again")


def test_a_failing_worker_holds_up_nobody_else(jobs: Jobs, start_worker: StartWorker) -> None:
    """Jobs and their messages go to the worker that works: the one that can't asks for none."""
    broken = start_worker("w1", ENGINE__MAX_DEATHS=MAX_DEATHS, ENGINE__RESPAWN_CAP_S=0.2)
    engine = _break_engine(broken)
    wait_until(lambda: "failing" in _seen(jobs, "w1").trouble, why="the reason in the ledger")
    start_worker("w2")
    views = wait_for_all(jobs, submit(jobs, 200, max_tokens=3))
    assert {(view.worker or "").partition(".")[0] for view in views} == {"w2"}
    assert "delivery_dropped" not in broken.log
    engine.resume()
    wait_until(lambda: _seen(jobs, "w1").trouble == "", why="the worker to recover")
    wait_for_all(jobs, submit(jobs, 200, max_tokens=3))
    assert '"event": "job"' in broken.log, "it takes its share again"


def test_an_engine_that_cannot_compute_takes_no_job_down(jobs: Jobs, start_worker: StartWorker) -> None:
    """An engine that loads and dies of whatever it generates costs each job one strike at the most: it has to generate
    for no job first. All jobs end on a worker that works."""
    port = free_port()
    settings = {"ENGINE__MAX_DEATHS": MAX_DEATHS, "ENGINE__RESPAWN_CAP_S": 0.2, "TELEMETRY__PORT": port}
    broken = start_worker("w1", ENGINE__SYNTHETIC_FAULTS="*=die@0", **settings)
    ids = submit(jobs, 6, max_tokens=5)
    wait_until(lambda: scrape(port)["farm_engine_restarts_total"] >= 5, why="five deaths")
    assert broken.ready().startswith("engine failing")
    waiting = [view for view in jobs.views(ids) if view]
    assert {view.state for view in waiting} <= {JobState.QUEUED, JobState.DISPATCHED}
    assert max(view.attempt for view in waiting) == 1
    start_worker("w2")
    views = wait_for_all(jobs, ids)
    assert {view.state for view in views} == {JobState.SUCCEEDED}
    assert all(len(view.history) <= 2 for view in views)


def test_an_engine_that_never_starts_is_shown(jobs: Jobs, tmp_path: Path) -> None:
    """A worker whose engine can't load is not ready and stands in ``farm status`` with the reason; it can be ended."""
    hopeless = {"ENGINE__LOAD_TIMEOUT_S": 0.001, "ENGINE__MAX_DEATHS": 2, "ENGINE__RESPAWN_CAP_S": 0.1}
    with WorkerProcess(jobs, tmp_path, "w1", TELEMETRY__PORT=free_port(), **hopeless) as worker:
        wait_until(lambda: "did not load its model within" in worker.ready(), why="the reason at /readyz")
        wait_until(lambda: worker.id and _seen(jobs, "w1").trouble, why="the reason in the ledger")
        assert "did not load its model within" in _seen(jobs, "w1").trouble
        worker.process.terminate()
        assert worker.wait() == 0
        assert "Traceback" not in worker.log


def test_a_model_that_is_away_for_a_moment_ends_no_worker(
    jobs: Jobs, start_worker: StartWorker, tmp_path: Path
) -> None:
    """What was served once and can't be loaded again is tried until it can: the worker says so and stays."""
    folder, away = tmp_path / "model", tmp_path / "away"
    save_bloom(folder, CASES["tiny"].config)
    worker = start_worker("w1", ENGINE__KIND="bloom", MODEL__ID=folder, TELEMETRY__PORT=free_port())
    wait_until(lambda: worker.ready() == "ready", why="the worker to be ready")
    folder.rename(away)
    worker.engine.kill()
    wait_until(lambda: "refused: " in worker.ready(), why="the reason at /readyz")
    assert str(folder) in worker.ready()
    away.rename(folder)
    wait_until(lambda: worker.ready() == "ready", why="the worker to recover")


def test_a_hung_engine_is_killed_while_nothing_runs(jobs: Jobs, start_worker: StartWorker) -> None:
    """An engine that falls silent with nothing to do is replaced too, before a job finds out."""
    worker = start_worker("w1", ENGINE__WATCHDOG_S=1)
    engine = worker.engine
    engine.suspend()
    wait_until(lambda: not engine.is_running(), why="the watchdog")
    [view] = wait_for_all(jobs, submit(jobs, 1, max_tokens=3))
    assert (view.state, view.attempt) == (JobState.SUCCEEDED, 1)


def test_a_port_is_for_probes_of_system_workers_too(jobs: Jobs, start_worker: StartWorker) -> None:
    """A worker without an engine is ready once the farm knows it; what is not there is a 404."""
    worker = start_worker("s1", WORKER__ROLE="system", TELEMETRY__PORT=free_port())
    wait_until(lambda: worker.ready() == "ready", why="the worker to be ready")
    assert worker.get("/livez") == (200, '{"alive": true}\n')
    assert worker.get("/metrics")[0] == 200
    assert worker.get("/")[0] == 404
