"""A job that dies with a real worker's engine, and is retried from Python."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from celery import Celery

from farm import AsyncFarm, Delta, Farm, JobDead, JobNotDead, JobNotFound, JobState, keys
from farm.ledger.jobs import Jobs
from tests.conftest import wait_until
from tests.integration.conftest import StartWorker
from tests.workers import WorkerProcess

TOKENS = 24
FRAGILE = {"KEEPER__MAX_LOSSES": 1, "KEEPER__MAX_STRIKES": 1, "ENGINE__SYNTHETIC_STEP_S": 0.04, "LEASE__LEASE_S": 600}


def die(farm: Farm, worker: WorkerProcess) -> tuple[str, list[Delta]]:
    """A job whose engine dies after its first tokens; and what a stream had of it."""
    job = farm.submit("a long story", max_tokens=TOKENS)
    seen: list[Delta] = []
    with pytest.raises(JobDead, match=r"was given up after .* tokens, attempt 1.*farm dead retry") as raised:  # noqa: PT012
        for delta in job.stream():
            if not seen:
                worker.engine.kill()
            seen.append(delta)
    assert raised.value.job is not None
    assert [record.reason for record in raised.value.job.history] == ["engine_died"]
    return job.id, seen


def test_a_dead_job_is_retried_and_may_be_waited_for_again(jobs: Jobs, start_worker: StartWorker) -> None:
    """After a retry its result and the rest of its stream come, as if it had never died; and only once is enough."""
    worker = start_worker("w1", **FRAGILE)
    with Farm(jobs.settings) as farm, ThreadPoolExecutor() as pool:
        job_id, seen = die(farm, worker)
        job = farm.job(job_id)
        [listed] = farm.dead()
        assert (listed.id, listed.state, listed.losses) == (job_id, JobState.DEAD, 1)
        assert farm.dead(tenant="somebody-else") == farm.dead(limit=1, model="another") == []
        with pytest.raises(JobDead):
            job.result(timeout=10)
        job.retry()
        waiting = pool.submit(job.result, 60)
        rest = list(job.stream(start=seen[-1].index))
        with pytest.raises(JobNotDead, match=f"job {job_id} is succeeded, not dead"):
            job.retry()
        completion = waiting.result()
        assert "".join(delta.text for delta in [*seen, *rest]) == completion.text
        assert len(completion.token_ids) == TOKENS
        assert completion.usage.resumed_tokens >= seen[-1].index
        assert completion.text == farm.generate("a long story", max_tokens=TOKENS, timeout=60).text
        assert farm.dead() == []


def test_a_plain_celery_job_is_retried_too(jobs: Jobs, start_worker: StartWorker, foreign_app: Celery) -> None:
    """The result of a plain Celery job that died and was retried takes the place of its failure."""
    worker = start_worker("w1", **FRAGILE)
    sent = foreign_app.send_task("farm.generate", kwargs={"prompt": "a long story", "max_tokens": TOKENS})
    wait_until(lambda: jobs.client.llen(keys.out(sent.id)), why="a token")
    worker.engine.kill()
    with pytest.raises(Exception, match="job_dead"):
        sent.get(timeout=30)
    with Farm(jobs.settings) as farm:
        farm.job(sent.id).retry()
        completion = farm.job(sent.id).result(timeout=60)
    wait_until(lambda: foreign_app.AsyncResult(sent.id).state == "SUCCESS", why="the result to be stored")
    assert foreign_app.AsyncResult(sent.id).get()["text"] == completion.text


async def test_the_same_names_awaited(jobs: Jobs, start_worker: StartWorker) -> None:
    """AsyncFarm lists, retries and deletes dead jobs as well."""
    worker = start_worker("w1", **FRAGILE)
    async with AsyncFarm(jobs.settings) as farm:
        first, _ = await farm.work(die, farm.sync, worker)
        second, _ = await farm.work(die, farm.sync, worker)
        assert [view.id for view in await farm.dead()] == [second, first]
        await farm.job(first).retry(fresh=True)
        completion = await farm.job(first).result(timeout=60)
        assert (len(completion.token_ids), completion.usage.resumed_tokens) == (TOKENS, 0)
        await farm.job(second).purge()
        with pytest.raises(JobNotFound):
            await farm.job(second).purge()
        with pytest.raises(JobNotFound):
            await farm.job(second).result(timeout=10)
        assert await farm.dead() == []
