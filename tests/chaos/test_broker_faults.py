"""One server that is killed, cut off, frozen, out of memory or out of disk, under real workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from farm import AsyncFarm, Farm, Job, ServerFull, ServerUnreachable
from farm.ledger.jobs import Jobs
from farm.local.server import EmbeddedServer
from farm.results import JobView
from farm.settings import Settings, load_settings
from tests.chaos.proxy import FaultProxy
from tests.conftest import wait_until
from tests.workers import WorkerProcess

pytestmark = pytest.mark.alone

QUICK_S = 0.5
LEASE_S = 2.0
UNHURT_BY_SIGXFSZ = ("sh", "-c", 'trap "" XFSZ; exec "$@"', "sh")


@dataclass
class Field:
    """A server that acknowledges nothing before it is on disk, and a worker that lives through all that it suffers."""

    server: EmbeddedServer
    proxy: FaultProxy
    worker: WorkerProcess


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    """One of each for the whole module; the worker reaches the server through the proxy."""
    folder = tmp_path_factory.mktemp("field")
    server = EmbeddedServer(folder / "server", appendfsync="always", launcher=UNHURT_BY_SIGXFSZ)
    server.start()
    with FaultProxy(server.url) as proxy:
        jobs = Jobs(load_settings(redis={"url": proxy.url}))
        speed = {"ENGINE__SYNTHETIC_STEP_S": 0.01, "ENGINE__MAX_SLOTS": 4, "LEASE__LEASE_S": LEASE_S}
        with WorkerProcess(jobs, folder, "w1", **speed) as worker:
            yield Field(server, proxy, worker.wait_ready())
        jobs.client.close()
    server.kill()


@pytest.fixture
def settings(field: Field) -> Settings:
    """Settings of clients that are quick to give up."""
    return load_settings(redis={"url": field.server.url, "timeout_s": QUICK_S})


@pytest.fixture
def farm(field: Field, settings: Settings) -> Iterator[Farm]:
    """A client; after its test the server and the worker are well and nothing is left to do."""
    with Farm(settings) as client:
        yield client
        assert field.worker.process.poll() is None, field.worker.log
        wait_until(lambda: not client.ledger.client.zcard("{farm}:running"), why="all jobs to end")


def running(farm: Farm, jobs: list[Job], count: int) -> None:
    """Return when so many of these jobs run and have tokens."""

    def seen() -> int:
        return sum(view.state == "running" and bool(view.token_ids) for view in views(farm, jobs))

    wait_until(lambda: seen() >= count, why=f"{count} jobs to run")


def views(farm: Farm, jobs: list[Job]) -> list[JobView]:
    return [view for view in farm.ledger.views([job.id for job in jobs]) if view is not None]


def check_once(farm: Farm, jobs: list[Job], tokens: int) -> None:
    """Every job ended once, in its first attempt, with all its tokens."""
    for job in jobs:
        job.result(60)
    assert [(view.attempt, len(view.history), len(view.token_ids)) for view in views(farm, jobs)] == [
        (1, 1, tokens)
    ] * len(jobs)


def totals(farm: Farm) -> tuple[int, int]:
    """How many jobs were ever submitted, and how many succeeded."""
    submitted, succeeded = farm.ledger.client.hmget("{farm}:totals", "submitted", "succeeded")
    return int(submitted or 0), int(succeeded or 0)


def test_a_killed_server_loses_nothing_that_it_acknowledged(field: Field, settings: Settings, farm: Farm) -> None:
    """With appendfsync always: whoever repeats what failed has one job for each prompt, and each ends, once."""
    jobs: list[Job] = []
    before = totals(farm)
    is_over = threading.Event()

    def produce() -> None:
        with Farm(settings) as producer:
            while len(jobs) < 200 and not is_over.is_set():
                n = len(jobs)
                with contextlib.suppress(ServerUnreachable):
                    jobs.append(farm.job(producer.submit(f"p{n}", max_tokens=5, idempotency_key=f"k{n}").id))

    producing = threading.Thread(target=produce)
    producing.start()
    try:
        for count in (30, 90):
            wait_until(lambda count=count: len(jobs) > count, why="submissions")  # type: ignore[misc]
            field.server.kill()
            acknowledged = list(jobs)
            field.server.start()
            assert len(views(farm, acknowledged)) == len(acknowledged)
        wait_until(lambda: len(jobs) == 200, why="all submissions")
    finally:
        is_over.set()
        producing.join()
    assert {job.result(60).finish_reason for job in jobs} == {"length"}
    assert totals(farm) == (before[0] + 200, before[1] + 200)


def test_everysec_with_durability_fsync_loses_nothing_either(tmp_path: Path) -> None:
    """Where the server syncs once a second, a submission that waits for the disk outlives it; it waits longer."""
    server = EmbeddedServer(tmp_path / "server", appendfsync="everysec")
    server.start()
    try:
        with Farm(load_settings(redis={"url": server.url, "durability": "fsync", "timeout_s": 5})) as farm:
            jobs = [farm.submit(f"p{n}") for n in range(2)]
            server.kill()
            server.start()
            assert [job.status().state for job in jobs] == ["queued", "queued"]
    finally:
        server.kill()


def test_dropped_connections_waste_no_attempt(field: Field, farm: Farm) -> None:
    """Connections that break under running jobs, the broker's too, are made again: no job starts over."""
    jobs = farm.submit_many([f"p{n}" for n in range(8)], max_tokens=150)
    for _ in range(3):
        running(farm, jobs, 2)
        field.proxy.cut()
    check_once(farm, jobs, 150)


def test_a_frozen_server_fails_calls_in_time_and_reaps_nothing(field: Field, settings: Settings, farm: Farm) -> None:
    """A server that hangs for longer than a lease costs callers their time limit, and no job its attempt."""
    jobs = farm.submit_many([f"p{n}" for n in range(6)], max_tokens=200)
    running(farm, jobs, 4)
    began = time.monotonic()
    with frozen(field.server):
        # The first has a connection, the others not even that: nothing is cancelled or submitted later.
        for call in (jobs[0].status, jobs[0].cancel, lambda: farm.submit("one more")):
            called = time.monotonic()
            with pytest.raises(ServerUnreachable):
                call()
            assert time.monotonic() - called < 2 * QUICK_S
        assert asyncio.run(_ask_at_once(settings, jobs[0].id)) < 3 * QUICK_S
        wait_until(lambda: time.monotonic() - began > 2 * LEASE_S, why="two leases to pass")
    check_once(farm, jobs, 200)


@contextlib.contextmanager
def frozen(server: EmbeddedServer) -> Iterator[None]:
    """A server that does nothing while its connections stay."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


async def _ask_at_once(settings: Settings, job_id: str) -> float:
    """Seconds until forty calls, ten times as many as there are threads for them, have all failed."""
    async with AsyncFarm(settings) as farm:
        began = time.monotonic()
        answers = await asyncio.gather(*(farm.job(job_id).status() for _ in range(40)), return_exceptions=True)
        took_s = time.monotonic() - began
    assert all(isinstance(answer, ServerUnreachable) for answer in answers)
    return took_s


def test_a_server_without_memory_refuses_new_jobs_and_ends_running_ones(farm: Farm) -> None:
    """At maxmemory a submission is refused before it is written, running jobs end, and waiting ones go on after it."""
    jobs = farm.submit_many([f"p{n}" for n in range(8)], max_tokens=100)
    running(farm, jobs, 4)
    farm.ledger.client.config_set("maxmemory", 1)
    try:
        with pytest.raises(ServerFull):
            farm.submit("no room")
        wait_until(lambda: sum(view.state == "succeeded" for view in views(farm, jobs)) >= 4, why="running jobs to end")
    finally:
        farm.ledger.client.config_set("maxmemory", 0)
    check_once(farm, jobs, 100)


def test_a_full_disk_stops_the_farm_and_loses_nothing(field: Field, farm: Farm) -> None:
    """A server that can't write its file (everysec) refuses all changes; with room again, the farm goes on."""
    farm.ledger.client.config_set("appendfsync", "everysec")
    jobs = farm.submit_many([f"p{n}" for n in range(3)], max_tokens=200)
    running(farm, jobs, 3)  # and a slot is free: Celery asks for more
    with full_disk(field.server):
        accepted, refused = submit_until_refused(farm)
        assert "MISCONF" in str(refused)
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 1.5 * LEASE_S, why="more than a lease to pass")
        with pytest.raises(ServerUnreachable):
            farm.submit("no room")
        assert jobs[0].status().state == "running"
    check_once(farm, jobs, 200)
    check_once(farm, accepted, 5)
    farm.ledger.client.config_set("appendfsync", "always")


def test_a_full_disk_ends_a_server_that_syncs_always_and_loses_nothing(field: Field, farm: Farm) -> None:
    """With appendfsync always the server rather ends than acknowledges what it can't keep; its restart has it all."""
    with full_disk(field.server):
        accepted, _ = submit_until_refused(farm)
        wait_until(lambda: field.server.returncode is not None, why="the server to end")
    field.server.start()
    check_once(farm, accepted, 5)


@contextlib.contextmanager
def full_disk(server: EmbeddedServer) -> Iterator[None]:
    """A server that can write its file no further than some 64 KiB from now."""
    assert server.pid is not None
    size = max(path.stat().st_size for path in server.folder.rglob("*.aof")) + (1 << 16)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        if server.is_running():
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def submit_until_refused(farm: Farm) -> tuple[list[Job], ServerUnreachable]:
    """The jobs that a server accepted, and its refusal of the next."""
    accepted: list[Job] = []
    refused: list[ServerUnreachable] = []

    def submit() -> bool:
        try:
            accepted.append(farm.submit("x" * 1_000, max_tokens=5))
        except ServerUnreachable as error:
            refused.append(error)
        return bool(refused)

    wait_until(submit, why="the server to refuse")
    assert refused[0].retryable
    return accepted, refused[0]
