"""Prompts that kill every engine that takes them, among prompts that don't, on real workers."""

from __future__ import annotations

import pytest

from farm.contracts import JobState, parse_request
from farm.ledger.jobs import Jobs
from farm.results import JobView
from tests.integration.conftest import StartWorker, submit, wait_for_all

NEIGHBOURS = 30


def _run_with_poison(jobs: Jobs, start_worker: StartWorker, rule: str, tokens: int) -> tuple[JobView, list[JobView]]:
    """The poison's end and its neighbours', on three workers."""
    faults = {"ENGINE__SYNTHETIC_STEP_S": 0.02, "ENGINE__SYNTHETIC_FAULTS": f"mandrake={rule}"}
    workers = [start_worker(f"w{number}", **faults) for number in range(3)]
    before = submit(jobs, NEIGHBOURS // 2, max_tokens=tokens)
    poison = jobs.place(parse_request({"prompt": "mandrake", "max_tokens": 200}))
    jobs.submit([poison])
    after = submit(jobs, NEIGHBOURS // 2, max_tokens=tokens)
    [dead, *neighbours] = wait_for_all(jobs, [poison.id, *before, *after], timeout_s=120)
    assert all(worker.process.poll() is None for worker in workers)
    return dead, neighbours


@pytest.mark.parametrize(("rule", "tokens"), [("die@0", 0), ("die@5", 5)], ids=["at prefill", "at its sixth token"])
def test_a_prompt_that_kills_engines_is_dead_after_three_strikes(
    jobs: Jobs, start_worker: StartWorker, rule: str, tokens: int
) -> None:
    """It takes engines down three times without a new token and is dead, with the reasons; every neighbour succeeds."""
    dead, neighbours = _run_with_poison(jobs, start_worker, rule, tokens=40)
    assert (dead.state, dead.strikes) == (JobState.DEAD, 3)
    assert [(past.reason, past.tokens) for past in dead.history][-3:] == [("engine_died", 0)] * 3
    assert len(dead.token_ids) <= tokens
    assert dead.error is not None
    assert (dead.error.code, dead.error.retryable) == ("job_dead", False)
    assert all(view.state is JobState.SUCCEEDED and len(view.token_ids) == 40 for view in neighbours)
    assert {view.strikes for view in neighbours} == {0}


def test_a_prompt_that_kills_an_engine_every_few_tokens_is_dead_after_ten_losses(
    jobs: Jobs, start_worker: StartWorker
) -> None:
    """It always gets a little further, and is given up all the same; every neighbour succeeds."""
    dead, neighbours = _run_with_poison(jobs, start_worker, "die+4", tokens=60)
    assert dead.state is JobState.DEAD
    assert [past.reason for past in dead.history] == ["engine_died"] * 10
    assert "10 times in a row" in str(dead.error)
    assert 0 < len(dead.token_ids) <= 40
    assert all(view.state is JobState.SUCCEEDED and len(view.token_ids) == 60 for view in neighbours)


def test_poison_alone_keeps_a_worker_from_nothing_else(jobs: Jobs, start_worker: StartWorker) -> None:
    """A worker that meets one poisonous prompt after another may take its engine for broken; it tries again by itself,
    all the poison ends dead, and the job behind it succeeds."""
    start_worker("w1", ENGINE__SYNTHETIC_FAULTS="mandrake=die@0", ENGINE__RESPAWN_CAP_S=0.5, ENGINE__MAX_SLOTS=1)
    ids = submit(jobs, 3, prompt="mandrake", max_tokens=5)
    [innocent] = submit(jobs, 1, max_tokens=5)
    *dead, last = wait_for_all(jobs, [*ids, innocent], timeout_s=90)
    assert {view.state for view in dead} == {JobState.DEAD}
    assert all(view.strikes == 3 for view in dead)
    assert last.state is JobState.SUCCEEDED
