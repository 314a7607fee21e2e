"""Nothing lost: jobs of workers that were killed or frozen go on elsewhere, as if nothing had happened."""

from __future__ import annotations

from typing import Any

import pytest

from farm import keys
from farm.contracts import JobState, parse_request
from farm.ledger.jobs import Jobs
from farm.local.server import free_port
from farm.results import JobView
from tests.conftest import wait_until
from tests.integration.conftest import StartWorker, submit, wait_for_all
from tests.integration.test_metrics import scrape

pytestmark = pytest.mark.alone

SHORT_LEASE = {"LEASE__LEASE_S": 2}
STEP_S = 0.01
REQUESTS: list[dict[str, Any]] = [
    {"prompt": "Once upon a time"},
    {"prompt": "In the morning the farmer", "presence_penalty": 0.5, "repetition_penalty": 1.1},
    {"prompt": "Once upon a time", "temperature": 0.9, "seed": 7},
    {"prompt": "The little goat", "temperature": 1.3, "top_k": 40, "top_p": 0.9, "seed": 11, "frequency_penalty": 0.3},
]
LENGTH = {"max_tokens": 600, "ignore_eos": True}


def _ask(jobs: Jobs) -> list[str]:
    placed = [jobs.place(parse_request({**request, **LENGTH})) for request in REQUESTS]
    jobs.submit(placed)
    return [submission.id for submission in placed]


def _tokens(jobs: Jobs, ids: list[str]) -> list[int]:
    return [int(jobs.client.llen(keys.out(job_id))) for job_id in ids]  # type: ignore[arg-type]


def _totals(jobs: Jobs) -> dict[str, str]:
    totals: dict[str, str] = jobs.client.hgetall(keys.TOTALS)  # type: ignore[assignment]
    return totals


def test_a_resumed_job_gives_the_tokens_of_an_uninterrupted_one(jobs: Jobs, start_worker: StartWorker) -> None:
    """fp32, a real Bloom: greedy, seeded and penalized outputs of a killed worker's jobs are those of a worker that
    lives, token by token, and what was checkpointed is not computed again."""
    model = {"ENGINE__KIND": "bloom", "MODEL__DTYPE": "float32", **SHORT_LEASE}
    with start_worker("w0", **model):
        expected = [view.token_ids for view in wait_for_all(jobs, _ask(jobs))]
    doomed = start_worker("w1", **model)
    ids = _ask(jobs)
    wait_until(lambda: min(_tokens(jobs, ids)) >= 20, why="every job to have some tokens")
    doomed.kill()
    kept = _tokens(jobs, ids)
    start_worker("w2", **model)
    views = wait_for_all(jobs, ids)
    assert [view.token_ids for view in views] == expected
    assert [view.usage.resumed_tokens for view in views] == kept
    assert all(0 < tokens < LENGTH["max_tokens"] for tokens in kept)


def test_a_kill_costs_no_more_decoding_than_one_flush(jobs: Jobs, start_worker: StartWorker) -> None:
    """Whenever a worker is killed, both engines together sample a job's tokens and one flush interval's worth more."""
    flush_s, tokens = 0.3, 350
    pace = {"ENGINE__SYNTHETIC_STEP_S": STEP_S, "LEASE__FLUSH_S": flush_s, "LEASE__LEASE_S": 600}
    # Half as much again for a machine that is busy with other things.
    worth = 8 * 1.5 * flush_s / STEP_S
    doomed = start_worker("w1", **pace)
    ids = submit(jobs, 8, max_tokens=tokens)
    wait_until(lambda: min(_tokens(jobs, ids)) >= 30, why="every job to have some tokens")
    lost = []
    while doomed.generated < 8 * 300:
        lost.append(doomed.generated - sum(_tokens(jobs, ids)))
    assert len(lost) > 10
    assert max(lost) <= worth
    doomed.kill()
    kept = _tokens(jobs, ids)
    second = start_worker("w1", **pace)
    views = wait_for_all(jobs, ids)
    assert [view.usage.resumed_tokens for view in views] == kept
    first, last = doomed.generated_by_each
    assert last == sum(tokens - count for count in kept), "checkpointed tokens are not sampled again"
    assert first + last <= 8 * tokens + worth
    assert second.process.poll() is None


@pytest.mark.parametrize("alone", [False, True], ids=["with its engine", "alone"])
def test_a_frozen_worker_can_write_nothing_when_it_thaws(jobs: Jobs, start_worker: StartWorker, alone: bool) -> None:
    """Frozen beyond its lease, a worker finds its jobs finished elsewhere: it changes no token, result or counter, has
    its engine drop them, and goes on with new work. Its engine is not blamed for the time that it slept."""
    with start_worker("w0"):
        expected = [view.token_ids for view in wait_for_all(jobs, submit(jobs, 4, max_tokens=300))]
    port = free_port()
    # So slow that only an engine that is told to drops the long ones before the test ends.
    slow = {"ENGINE__SYNTHETIC_STEP_S": 0.05, "ENGINE__WATCHDOG_S": 1}
    frozen = start_worker("w1", TELEMETRY__PORT=port, **slow, **SHORT_LEASE)
    ids = submit(jobs, 4, max_tokens=300)
    long_ids = submit(jobs, 2, max_tokens=2000)
    wait_until(lambda: min(_tokens(jobs, ids + long_ids)) >= 20, why="every job to have some tokens")
    engine = frozen.engine.pid
    frozen.freeze(alone=alone)
    other = start_worker("w2", **SHORT_LEASE)
    before = _facts(wait_for_all(jobs, ids + long_ids))
    totals = _totals(jobs)
    frozen.thaw()
    wait_until(lambda: scrape(port)["farm_slots_in_use"] == 0, why="its engine to drop the jobs")
    wait_until(lambda: frozen.held() == 0, why="it to be known to hold nothing")
    views = wait_for_all(jobs, ids + long_ids)
    assert _facts(views) == before
    assert _totals(jobs) == totals
    assert [view.token_ids for view in views[:4]] == expected
    assert all([past.reason for past in view.history] == ["lease_ended", "finish"] for view in views)
    assert all(view.worker == other.id and view.usage.resumed_tokens >= 20 for view in views)
    other.kill()
    [view] = wait_for_all(jobs, submit(jobs, 1, max_tokens=5))
    assert (view.state, view.worker) == (JobState.SUCCEEDED, frozen.id)
    assert frozen.engine.pid == engine


def _facts(views: list[JobView]) -> list[tuple[object, ...]]:
    """All that a late write could change."""
    return [(view.to_dict(), view.token_ids) for view in views]
