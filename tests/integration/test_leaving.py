"""Leaving early: whoever stops reading leaves no job, thread or connection behind."""

from __future__ import annotations

import asyncio
import itertools
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import redis

from farm import AsyncFarm, Farm, FarmError, keys
from farm.ledger.jobs import Jobs
from farm.settings import Settings
from tests.commands import environ
from tests.conftest import wait_until
from tests.farmhand import Farmhand, quick
from tests.integration.conftest import StartWorker

ENDED = {"succeeded", "cancelled"}
WINDOW = 10


@pytest.fixture
def slow(settings: Settings, jobs: Jobs) -> Iterator[Settings]:
    """Settings of a farm whose worker takes one job at a time."""
    del jobs
    made = quick(settings)
    with Farmhand(made, capacity=1, tokens_per_beat=1):
        yield made


@pytest.fixture
def nothing_left(client: redis.Redis, slow: Settings) -> Iterator[None]:
    """Afterwards there are no more threads and connections than before."""
    connections = {entry["id"] for entry in client.client_list()}
    threads = set(threading.enumerate())
    yield
    wait_until(
        lambda: not {thread.name for thread in set(threading.enumerate()) - threads}, why="threads to end", timeout_s=10
    )
    wait_until(
        lambda: len({entry["id"] for entry in client.client_list()} - connections) == 0,
        why="connections to close",
        timeout_s=10,
    )


def states(client: redis.Redis) -> Counter[str]:
    return Counter(client.hget(key, "state") for key in client.scan_iter(f"{keys.PREFIX}job:*"))


def endless() -> Iterator[str]:
    return (f"p{number}" for number in itertools.count())


def by_break(farm: Farm) -> None:
    for _ in farm.map(endless(), max_tokens=3, window=WINDOW):
        break


def by_error(farm: Farm) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        for _ in farm.as_completed(endless(), max_tokens=3, window=WINDOW):
            raise ZeroDivisionError


def by_interrupt(farm: Farm) -> None:
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        for _ in farm.map(endless(), max_tokens=3, window=WINDOW):
            raise KeyboardInterrupt


def by_a_broken_source(farm: Farm) -> None:
    def broken() -> Iterator[str]:
        yield from itertools.islice(endless(), WINDOW + 1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(farm.map(broken(), max_tokens=3, window=WINDOW))


def by_close(farm: Farm) -> None:
    with closing(farm.map(endless(), max_tokens=3, window=WINDOW)) as results:  # type: ignore[type-var]
        next(results)


def by_closing_the_farm(farm: Farm) -> None:
    results = farm.map(endless(), max_tokens=3, window=WINDOW)
    next(results)
    farm.close()
    with pytest.raises(FarmError, match="close"):
        list(results)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("leave", [by_break, by_error, by_interrupt, by_a_broken_source, by_close, by_closing_the_farm])
def test_a_map_that_is_left_ends_what_it_submitted(
    slow: Settings, client: redis.Redis, leave: Callable[[Farm], None]
) -> None:
    """However a loop over map or as_completed ends early, jobs that were not delivered are cancelled."""
    with Farm(slow) as farm:
        leave(farm)
        assert states(client).keys() <= ENDED
        assert states(client)["cancelled"] >= WINDOW // 2


@pytest.mark.usefixtures("nothing_left")
def test_only_own_jobs_are_cancelled(slow: Settings, client: redis.Redis) -> None:
    """A job that was there before, given as a job or found under its key, is another's to cancel."""
    with Farm(slow) as farm, Farm(slow) as other, ThreadPoolExecutor() as pool:
        busy = other.submit("busy", max_tokens=1_000)
        given = other.submit("given")
        keyed = other.submit("keyed", idempotency_key="k")
        results = farm.as_completed([given, {"prompt": "keyed", "idempotency_key": "k"}, "own"])
        waiting = pool.submit(next, results)
        wait_until(lambda: len(farm.reader.watched) == 3, why="all three to be awaited")
        farm.close()
        with pytest.raises(FarmError, match="closed while waiting"):
            waiting.result(timeout=30)
        assert all(not job.status().state.is_terminal for job in (given, keyed))
        assert states(client)["cancelled"] == 1
        other.ledger.cancel([busy.id, given.id, keyed.id])


@pytest.mark.usefixtures("nothing_left")
def test_ctrl_c_ends_what_a_map_submitted(slow: Settings, client: redis.Redis) -> None:
    """A program that is interrupted while it waits in a map cancels its jobs on its way out."""
    assert slow.redis.url is not None
    code = (
        "import itertools\nfrom farm import Farm\nwith Farm() as farm:\n"
        "    for result in farm.map((f'p{n}' for n in itertools.count()), max_tokens=50, window=10):\n"
        "        print(result.id, flush=True)\n"
    )
    process = subprocess.Popen(
        # redis-py leaves a socket to the collector where an interrupt meets it while it connects.
        [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-c", code],
        env=environ(REDIS__URL=slow.redis.url.get_secret_value()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert err.rstrip().endswith("KeyboardInterrupt"), err
    assert states(client).keys() <= ENDED


# With asyncio.


async def async_break(farm: AsyncFarm) -> None:
    async for _ in farm.map(endless(), max_tokens=3, window=WINDOW):
        break


async def async_error(farm: AsyncFarm) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async for _ in farm.as_completed(endless(), max_tokens=3, window=WINDOW):
            raise ZeroDivisionError


async def async_cancel(farm: AsyncFarm) -> None:
    seen = asyncio.Event()

    async def read() -> None:
        async for _ in farm.map(endless(), max_tokens=3, window=WINDOW):
            seen.set()

    task = asyncio.create_task(read())
    await seen.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def async_kept_open(farm: AsyncFarm) -> None:
    farm.kept = farm.map(endless(), max_tokens=3, window=WINDOW)  # type: ignore[attr-defined]
    await anext(farm.kept)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("leave", [async_break, async_error, async_cancel, async_kept_open])
async def test_an_async_map_that_is_left_ends_what_it_submitted(
    slow: Settings, client: redis.Redis, leave: Callable[[AsyncFarm], AsyncIterator[None]]
) -> None:
    """The same with asyncio, at the latest when the farm is closed."""
    async with AsyncFarm(slow) as farm:
        await leave(farm)  # type: ignore[misc]
    assert states(client).keys() <= ENDED
    assert states(client)["cancelled"] >= WINDOW // 2


@pytest.mark.usefixtures("nothing_left")
def test_waiting_and_streaming_leave_nothing(slow: Settings) -> None:
    """Waits that timed out and streams left half way cost nothing once the farm is closed."""
    with Farm(slow) as farm:
        job = farm.submit("hello", max_tokens=400)
        next(job.stream())
        with pytest.raises(TimeoutError):
            job.result(timeout=0.01)
        abandoned = job.stream()
        next(abandoned)
        job.cancel()


def test_a_killed_client_leaves_nothing_behind(jobs: Jobs, start_worker: StartWorker) -> None:
    """Of a client that is killed in a map nothing stays once its jobs have ended and their retention is over."""
    start_worker("w1", LIMITS__RETENTION_S=1, ENGINE__MAX_SLOTS=4, ENGINE__SYNTHETIC_STEP_S=0.01)
    assert jobs.settings.redis.url is not None
    code = (
        "import itertools\nfrom farm import Farm\n"
        "for result in Farm().map((f'p{n}' for n in itertools.count()), max_tokens=20, window=30):\n"
        "    print(result.id, flush=True)\n"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environ(REDIS__URL=jobs.settings.redis.url.get_secret_value()),
        stdout=subprocess.PIPE,
    )
    assert client.stdout is not None
    client.stdout.readline()
    client.kill()
    client.communicate()
    server = jobs.client
    assert sum(map(int, server.hgetall(keys.counts("tiny-bloom")).values())) > 0  # type: ignore[union-attr]
    wait_until(lambda: not any(map(of_jobs, server.scan_iter())), why="all that is of jobs to go", timeout_s=60)
    left = {key for key in server.scan_iter() if not key.startswith("_kombu.binding") and server.ttl(key) < 0}
    assert left <= {f"{keys.PREFIX}{name}" for name in permanent(server)}, left


FAMILIES = "job|out|history|jobs|queue|lanes|owed|held"
SETS = "delayed|dispatched|running|deadlines|finished|dead|undelivered"
JOBS_OWN = re.compile(rf"{re.escape(keys.PREFIX)}(({FAMILIES}):.*|{SETS})$")


def of_jobs(key: str) -> bool:
    return JOBS_OWN.match(key) is not None


def permanent(server: redis.Redis) -> set[str]:
    """What a farm with one worker has on its server when there are no jobs."""
    names = {key.name.split(":")[0] for key in keys.KEYS if ":" not in key.name}
    models = {f"{name}:tiny-bloom" for name in ("counts", "depth", "rate", "vtime", "vclock")}
    return names | models | {f"worker:{worker}" for worker in server.zrange(keys.WORKERS, 0, -1)}
