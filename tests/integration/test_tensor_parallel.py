"""Workers whose engine is several ranks: whichever process is lost, jobs are answered exactly and nothing is left."""

from __future__ import annotations

import signal
from typing import Any

import psutil
import pytest

from farm import keys
from farm.contracts import JobState, parse_request
from farm.ledger.jobs import Jobs
from tests.conftest import wait_until
from tests.engine.driving import bloom, one
from tests.integration.conftest import StartWorker, wait_for_all
from tests.workers import WorkerProcess
from workers.engine.engine import Engine

PROMPTS = ["Once upon a time", "The little goat"]
TOKENS = 300
RANKS: dict[str, Any] = {"ENGINE__KIND": "bloom", "ENGINE__TENSOR_PARALLEL": 2, "MODEL__DTYPE": "float32"}


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    """The tokens of a single process that nobody disturbs."""
    engine = Engine(bloom("tiny-bloom", max_context=2048), 128)
    return [one(engine, prompt, max_tokens=TOKENS, ignore_eos=True).ids for prompt in PROMPTS]


def _ask(jobs: Jobs) -> list[str]:
    requests = [{"prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True} for prompt in PROMPTS]
    placed = [jobs.place(parse_request(request)) for request in requests]
    jobs.submit(placed)
    return [submission.id for submission in placed]


def _tokens(jobs: Jobs, ids: list[str]) -> list[int]:
    """How many tokens of each job the ledger has."""
    return [int(jobs.client.llen(keys.out(job_id))) for job_id in ids]  # type: ignore[arg-type]


def _rank(worker: WorkerProcess) -> psutil.Process:
    """The process of rank 1."""
    [rank] = worker.engine.children()
    return rank


def _stop_amid_jobs(jobs: Jobs, worker: WorkerProcess) -> tuple[list[str], list[psutil.Process]]:
    """Submit, and stop rank 1 when every job has tokens and none has all. Returns the jobs and rank 0 and 1."""
    ids = _ask(jobs)
    wait_until(lambda: min(_tokens(jobs, ids)) >= 10, why="every job to have tokens", timeout_s=60)
    processes = [worker.engine, _rank(worker)]
    processes[1].suspend()
    assert max(_tokens(jobs, ids)) < TOKENS, "the jobs ended before they could be disturbed"
    return ids, processes


def _gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


@pytest.mark.parametrize("lost", ["rank 0", "rank 1", "rank 1 frozen"])
def test_a_lost_rank_costs_no_job_a_token(
    lost: str, jobs: Jobs, start_worker: StartWorker, expected: list[list[int]]
) -> None:
    """When one rank is killed or freezes, the other ends too, the worker starts both again, and the jobs go on where
    they were, token by token as one process would have it."""
    watchdog = {"ENGINE__WATCHDOG_S": 2} if lost == "rank 1 frozen" else {}
    worker = start_worker("w1", **RANKS, **watchdog)
    ids, processes = _stop_amid_jobs(jobs, worker)
    if lost != "rank 1 frozen":
        processes[int(lost[-1])].kill()
    wait_until(lambda: _gone(processes), why="both ranks to end", timeout_s=20)
    views = wait_for_all(jobs, ids, timeout_s=90)
    assert [view.state for view in views] == [JobState.SUCCEEDED] * len(ids)
    assert [view.token_ids for view in views] == expected
    assert all(0 < view.usage.resumed_tokens < TOKENS for view in views)
    reason = "engine_hung" if lost == "rank 1 frozen" else "engine_died"
    assert [[past.reason for past in view.history] for view in views] == [[reason, "finish"]] * len(ids)
    assert _rank(worker).pid != processes[1].pid
    ends = [line for line in worker.log.splitlines() if '"event": "rank_lost"' in line]
    assert len(ends) == (lost == "rank 1")
    assert all("was ended by SIGKILL" in line for line in ends)


def test_a_worker_that_drains_leaves_no_rank_behind(jobs: Jobs, start_worker: StartWorker) -> None:
    """SIGTERM, which a terminal or a container sends to every process, ends no rank by itself: the worker drains, hands
    its jobs back with what they have, and none of its processes lives on."""
    worker = start_worker("w1", **RANKS)
    ids = _ask(jobs)
    wait_until(lambda: worker.held() == len(ids), why="the jobs to run")
    processes = [worker.engine, _rank(worker)]
    for process in processes:
        process.terminate()
    before = max(_tokens(jobs, ids))
    wait_until(lambda: max(_tokens(jobs, ids)) > before, why="the ranks to go on", timeout_s=60)
    worker.send(signal.SIGTERM)
    assert worker.wait(15) == 0
    wait_until(lambda: _gone(processes), why="both ranks to end", timeout_s=5)
    views = [view for view in jobs.views(ids) if view is not None]
    assert [[past.reason for past in view.history] for view in views] == [["drain"]] * len(ids)
