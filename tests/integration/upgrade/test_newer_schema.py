"""A version that meets what a newer one wrote leaves it alone, says so, and does its own work."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
from celery import Celery

from farm import keys, schema
from farm.contracts import JobState
from farm.doctor.server import check_schema
from farm.errors import LedgerTooNew
from farm.ledger.attempts import Refusal
from farm.ledger.jobs import Jobs
from farm.ledger.upkeep import Dispatch
from tests.conftest import wait_until
from tests.integration.conftest import StartWorker, submit, wait_for_all
from tests.integration.ledger.farmhand import Field
from tests.integration.ledger.invariants import check
from tests.workers import WorkerProcess
from workers.exits import EXIT_REFUSED
from workers.keeper import _envelope

NEWER = schema.READS + 1
LEFT = "newer_schema_left_to_others"


@pytest.fixture
def field(jobs: Jobs) -> Field:
    return Field(jobs)


def test_a_job_of_a_newer_schema_waits_for_a_worker_that_knows_it(
    jobs: Jobs, client: redis.Redis, start_worker: StartWorker
) -> None:
    """It is not claimed, counted against or failed; jobs behind it are answered; once it can be read it is too."""
    [newer] = submit(jobs, max_tokens=4)
    client.hset(keys.job(newer), "schema", NEWER)
    worker = start_worker("w1")
    others = submit(jobs, 3, max_tokens=4)
    assert {view.state for view in wait_for_all(jobs, others)} == {JobState.SUCCEEDED}
    wait_until(lambda: LEFT in worker.log, why="the worker to say so")
    view = jobs.view(newer)
    assert (view.state, view.attempt, view.strikes, view.history) == (JobState.QUEUED, 0, 0, [])
    client.hset(keys.job(newer), "schema", schema.READS)
    assert [view.state for view in wait_for_all(jobs, [newer])] == [JobState.SUCCEEDED]


def test_a_newer_job_comes_back_after_a_while_only(field: Field) -> None:
    """A worker that can't read a job does not get it again at once, so that others have their chance."""
    [job] = field.submit()
    hand = field.worker()
    field.client.hset(keys.job(job), "schema", NEWER)
    [message] = field.dispatch()
    assert hand.claim(message) == Refusal("newer")
    assert field.dispatch() == []
    field.later(2_001)
    hand.beat()
    field.keep()
    assert [message.id for message in field.dispatch()] == [job]
    check(field)


def test_a_message_of_a_newer_schema_is_dropped_and_its_job_is_not(
    jobs: Jobs, client: redis.Redis, start_worker: StartWorker
) -> None:
    """Its job is published again by a keeper, in words that this version knows. What is no job's id is not logged."""
    worker = start_worker("w1")
    [job] = submit(jobs, max_tokens=4)
    wait_for_all(jobs, [job])
    envelope = _envelope(Dispatch(job, 7, "tiny-bloom", "normal", ""))
    assert envelope["kwargs"]["schema"] == schema.WRITES
    url = jobs.settings.redis.url
    assert url is not None
    with Celery("newer", broker=url.get_secret_value(), set_as_current=False) as app:
        app.send_task("farm.generate", **{**envelope, "kwargs": {**envelope["kwargs"], "schema": NEWER}})
        wait_until(lambda: LEFT in worker.log, why="the worker to say so")
        assert job in worker.log
        for stranger in ("Xyzzy, said the prompt", {"Xyzzy": 1}, 7):
            app.send_task("farm.generate", **{**envelope, "kwargs": {"job": stranger, "schema": NEWER}})
        wait_until(lambda: worker.log.count(LEFT) == 4, why="the worker to say so of strangers, too")
    [after] = submit(jobs, max_tokens=4)
    wait_for_all(jobs, [after])
    assert worker.process.poll() is None
    assert "(str of 22)" in worker.log
    assert "Xyzzy" not in worker.log


@pytest.mark.parametrize("role", ["model", "system"])
def test_a_worker_is_refused_by_a_ledger_of_a_newer_schema(
    jobs: Jobs, client: redis.Redis, tmp_path: Path, role: str
) -> None:
    """It ends with the exit code of a refusal and says what to run; its keeper moves nothing meanwhile."""
    client.set(keys.SCHEMA, NEWER)
    [job] = submit(jobs, max_tokens=4)
    with WorkerProcess(jobs, tmp_path, "w1", WORKER__ROLE=role) as worker:
        assert worker.wait(60) == EXIT_REFUSED
        assert f"of schema {NEWER}" in worker.log
        assert "run the version that wrote it" in worker.log
        assert "Traceback" not in worker.log
    assert client.zcard(keys.WORKERS) == 0
    assert client.hget(keys.job(job), "state") == "queued"
    assert client.get(keys.SCHEMA) == str(NEWER)


def test_an_older_keeper_does_not_move_jobs_of_a_newer_ledger(field: Field) -> None:
    """A keeper whose ledger has moved on under it leads no more, and takes nobody's lead."""
    field.worker()
    field.client.set(keys.SCHEMA, NEWER)
    [job] = field.submit()
    assert not field.keep().is_leader
    assert field.dispatch() == []
    assert field.client.get(keys.LEADER) is None
    assert field.state(job) == "queued"
    with pytest.raises(LedgerTooNew, match="run the version that wrote it"):
        field.worker("mill")
    field.client.set(keys.SCHEMA, schema.READS)
    assert [message.id for message in field.dispatch()] == [job]


@pytest.mark.parametrize(("ledger", "verdict"), [(schema.FIRST, "ok"), (schema.READS, "ok"), (NEWER, "fail")])
def test_the_doctor_knows_the_schema(ledger: int, verdict: str) -> None:
    """``farm doctor`` says before a rollback whether its version can read the ledger."""
    assert check_schema(ledger).verdict == verdict
