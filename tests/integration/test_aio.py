"""The asyncio client on a real server."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial

import pytest
import redis

from farm import (
    AsyncFarm,
    FarmError,
    IdempotencyConflict,
    InvalidRequest,
    JobCancelled,
    JobNotFound,
    JobState,
)
from farm.ledger.jobs import Jobs
from farm.prompts import Prompt
from farm.settings import Settings
from tests.conftest import wait_until
from tests.farmhand import Farmhand, quick, text_of


@pytest.fixture
async def farm(settings: Settings, jobs: Jobs) -> AsyncIterator[AsyncFarm]:
    """A client of the emptied server."""
    async with AsyncFarm(quick(settings)) as client:
        yield client


@pytest.fixture
def hand(settings: Settings, jobs: Jobs) -> Iterator[Farmhand]:
    with Farmhand(quick(settings)) as worker:
        yield worker


async def test_the_same_names_awaited(farm: AsyncFarm, hand: Farmhand) -> None:
    """All that Farm does, AsyncFarm does, awaited."""
    job = await farm.submit("hello", max_tokens=5, idempotency_key="k")
    assert await farm.submit("hello", max_tokens=5, idempotency_key="k") == job
    with pytest.raises(IdempotencyConflict):
        await farm.submit("hello", max_tokens=6, idempotency_key="k")
    assert (await job.result(timeout=20)).text == text_of("hello", 5)
    assert (await job.status()).state is JobState.SUCCEEDED
    assert await job.cancel() is JobState.SUCCEEDED
    assert (await farm.generate("hello", max_tokens=2)).text == text_of("hello", 2)
    many = await farm.submit_many(["a", "b"], max_tokens=2)
    assert [(await one.result()).text for one in many] == [text_of("a", 2), text_of("b", 2)]
    assert await farm.job(job.id).result(timeout=0.5) == await job.result()
    with pytest.raises(JobNotFound):
        await farm.job("no-such-job").result()
    with pytest.raises(InvalidRequest):
        await farm.submit("")
    assert {job, farm.job(job.id)} == {job}


async def test_a_timeout_or_a_cancelled_task_leaves_the_job_running(farm: AsyncFarm) -> None:
    """Giving up waiting leaves nothing behind, and the job goes on."""
    job = await farm.submit("hello", max_tokens=3)
    with pytest.raises(TimeoutError, match=job.id):
        await job.result(timeout=0.05)
    waiting = asyncio.create_task(job.result())
    streaming = asyncio.create_task(anext(job.stream()))
    while len(farm.sync.reader.watched.get(job.id, ())) < 2:
        await asyncio.sleep(0)
    for task in (waiting, streaming):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not farm.sync.reader.watched
    with Farmhand(farm.settings):
        assert (await job.result(timeout=20)).text == text_of("hello", 3)


async def test_a_stream_survives_the_death_of_a_worker(farm: AsyncFarm) -> None:
    """A stream goes on with another worker's tokens, without a gap or a repetition."""
    job = await farm.submit("hello", max_tokens=40)
    first = Farmhand(farm.settings, name="first", tokens_per_beat=2, die_at=10).start()
    tokens: list[int] = []
    second = None
    async for delta in job.stream():
        tokens += delta.token_ids
        if second is None and not first.is_alive:
            second = Farmhand(farm.settings, name="second", tokens_per_beat=2).start()
        elif second is None:
            wait_until(lambda: not first.is_alive, why="the first worker to die")
            second = Farmhand(farm.settings, name="second", tokens_per_beat=2).start()
    first.die()
    assert second is not None
    second.die()
    assert tokens == list(range(40))


async def test_a_thousand_waiters_cost_no_threads(farm: AsyncFarm, client: redis.Redis) -> None:
    """1,000 tasks that await results share the client's few threads and connections."""
    jobs = await farm.submit_many([f"p{n}" for n in range(1_000)], max_tokens=2)
    threads = threading.active_count()
    tasks = [asyncio.create_task(job.result()) for job in jobs]
    everyone = partial(wait_until, lambda: len(farm.sync.reader.watched) == 1_000, why="all to wait")
    await asyncio.get_running_loop().run_in_executor(None, everyone)
    assert threading.active_count() <= threads + 6  # the reader, four for calls, the one above
    assert len(client.client_list()) <= 8
    with Farmhand(farm.settings):
        results = await asyncio.gather(*tasks)
    assert [result.text for result in results] == [text_of(f"p{n}", 2) for n in range(1_000)]


async def test_map_keeps_the_order_and_the_window(farm: AsyncFarm, hand: Farmhand) -> None:
    """map answers endless prompts in order, from an ordinary or an asynchronous generator, within its window."""
    drawn = 0

    async def endless() -> AsyncIterator[str]:
        nonlocal drawn
        for drawn in itertools.count(1):
            if drawn % 7 == 0:
                await asyncio.sleep(0)
            yield f"p{drawn}"

    for prompts in (endless(), (f"p{n}" for n in itertools.count(1))):
        number = 0
        results = farm.map(prompts, max_tokens=2, window=20)
        async for result in results:
            number += 1
            assert result.text == text_of(f"p{number}", 2)
            if number == 60:
                break
        await results.aclose()
    assert drawn <= 60 + 20
    assert hand.most_seen <= 20
    assert not farm.sync.reader.watched


async def test_a_slow_source_does_not_hold_up_what_it_gave(farm: AsyncFarm, hand: Farmhand) -> None:
    """A prompt is answered while the next one is awaited."""
    answered = asyncio.Event()

    async def slow() -> AsyncIterator[str]:
        yield "first"
        await answered.wait()
        yield "second"

    texts = []
    async for result in farm.map(slow(), max_tokens=2):
        texts.append(result.text)
        answered.set()
    assert texts == [text_of("first", 2), text_of("second", 2)]


async def test_errors_take_their_places_or_are_raised(farm: AsyncFarm) -> None:
    """map and as_completed deliver errors when asked to, and raise the first otherwise."""
    prompts: list[Prompt] = ["a", "", "bad", "b"]
    with Farmhand(farm.settings, fail_prompts=frozenset({"bad"})):
        results = [r async for r in farm.map(prompts, max_tokens=2, return_exceptions=True)]
        assert [type(r).__name__ for r in results] == ["Completion", "InvalidRequest", "JobFailed", "Completion"]
        with pytest.raises(FarmError):
            [r async for r in farm.as_completed(prompts, max_tokens=2)]
        job = await farm.submit("c", max_tokens=2)
        assert [r.id async for r in farm.as_completed([job])] == [job.id]
        assert [r async for r in farm.map([])] == []


async def test_a_cancelled_job_wakes_its_waiter(farm: AsyncFarm) -> None:
    """Cancelling a job ends the wait for it."""
    job = await farm.submit("hello", max_tokens=5)
    waiting = asyncio.create_task(job.result())
    while job.id not in farm.sync.reader.watched:
        await asyncio.sleep(0)
    assert await job.cancel() is JobState.CANCELLED
    with pytest.raises(JobCancelled):
        await waiting
