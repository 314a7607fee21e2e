"""A master that Sentinels replace: what clients, streams and real workers see of it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from farm import Farm, Job, ServerUnreachable
from farm.broker import make_app
from farm.doctor.server import check_server
from farm.ledger.jobs import Jobs
from farm.local.server import HOST
from farm.settings import load_settings
from tests.chaos.replicas import SERVICE, Service, client_of, freeze, replicated
from tests.conftest import wait_until
from tests.workers import WorkerProcess

pytestmark = pytest.mark.alone

SLOW = {"ENGINE__SYNTHETIC_STEP_S": 0.02, "ENGINE__MAX_SLOTS": 8}


@contextlib.contextmanager
def worker(service: Service, folder: Path) -> Iterator[WorkerProcess]:
    """A worker that follows the master, ready; killed at the end, which it must have lived to see."""
    jobs = Jobs(load_settings(redis={"url": service.url}))
    with WorkerProcess(jobs, folder, "w1", **SLOW) as process:
        yield process.wait_ready()
        assert process.process.poll() is None, process.log
    jobs.client.close()


def test_nothing_acknowledged_is_lost_and_nothing_done_twice(tmp_path: Path) -> None:
    """With FARM_REDIS__WAIT_REPLICAS=1 and a master killed under load: every acknowledged job ends once, and a stream
    and a result that were waited for come to their end without a gap. Celery's own results work after it as before."""
    with replicated(tmp_path, sentinels=1) as service, worker(service, tmp_path), ThreadPoolExecutor() as pool:
        settings = load_settings(redis={"url": service.url, "wait_replicas": 1})
        jobs: list[Job] = []
        is_over = threading.Event()

        def produce(farm: Farm) -> None:
            while not is_over.is_set():
                with contextlib.suppress(ServerUnreachable):
                    jobs.append(farm.submit(f"p{len(jobs)}", max_tokens=3, idempotency_key=f"k{len(jobs)}"))

        with Farm(settings) as farm:
            long = [farm.submit(prompt, max_tokens=150) for prompt in ("streamed", "waited for")]
            streaming = pool.submit(lambda: [token for delta in long[0].stream() for token in delta.token_ids])
            waiting = pool.submit(long[1].result)
            producing = pool.submit(produce, farm)
            wait_until(lambda: len(jobs) > 20, why="submissions")
            wait_until(lambda: long[0].status().token_ids, why="tokens")
            service.master.kill()
            acknowledged = [*long, *jobs]
            service.wait_until_promoted()
            is_over.set()
            producing.result(30)
            with Farm(load_settings(redis={"url": service.url})) as after:
                ended = [after.job(job.id).result(60) for job in acknowledged]
            assert len(streaming.result(60)) == len(waiting.result(60).token_ids) == 150
            assert streaming.result() == ended[0].token_ids
            views = [job.status() for job in acknowledged]
            assert {(view.state, len(view.history)) for view in views} == {
                ("succeeded", view.attempt) for view in views
            }


def test_a_worker_follows_when_its_master_hangs(tmp_path: Path) -> None:
    """A master that is frozen, its connections open, is left by clients within their limit and by workers soon."""
    with (
        replicated(tmp_path, sentinels=1) as service,
        worker(service, tmp_path),
        Farm(load_settings(redis={"url": service.url})) as farm,
    ):
        jobs = farm.submit_many([f"p{n}" for n in range(4)], max_tokens=50)
        wait_until(lambda: jobs[0].status().token_ids, why="tokens")
        freeze(service.master)
        service.wait_until_promoted()
        began = time.monotonic()
        with contextlib.suppress(ServerUnreachable):
            jobs[0].status()  # its connection is the old one
        jobs[0].status()
        assert time.monotonic() - began < 4
        jobs += farm.submit_many([f"q{n}" for n in range(4)], max_tokens=5)
        assert {job.result(60).finish_reason for job in jobs} == {"length"}
        assert {job.status().attempt for job in jobs} == {1}


@pytest.mark.parametrize(("how", "refusal"), [("alone", "Not enough good replicas"), ("demoted", "read only replica")])
def test_an_old_master_takes_no_writes_and_its_clients_go_on(tmp_path: Path, how: str, refusal: str) -> None:
    """A master that lives on after its replica was promoted refuses to write: at once if min-replicas-to-write says so,
    else when a Sentinel has demoted it. Clients that are connected find its successor within the same call."""
    with (
        replicated(tmp_path, sentinels=1) as service,
        Farm(load_settings(redis={"url": service.url})) as farm,
        client_of(service.master) as old,
    ):
        before = farm.submit("before", idempotency_key="k")
        if how == "alone":
            old.config_set("min-replicas-to-write", 1)
        service.fail_over()
        if how == "demoted":
            old.replicaof(HOST, str(service.replica.port))  # as a Sentinel does some ten seconds later
        with pytest.raises(redis.ResponseError, match=refusal):
            old.set("a", 1)
        assert farm.submit("before", idempotency_key="k") == before
        assert farm.ledger.client.hget("{farm}:totals", "submitted") == "1"
        assert farm.ledger.client.info("server")["tcp_port"] == service.replica.port


def test_sentinels_that_are_dead_or_silent_cost_nobody_the_answer(tmp_path: Path) -> None:
    """One of three Sentinels that answers is enough, in time, for clients and for Celery."""
    with replicated(tmp_path, sentinels=3) as service:
        settings = load_settings(redis={"url": service.url})
        silent, dead, _ = service.sentinels
        silent.freeze()
        dead.stop()
        with Farm(settings) as farm:
            assert farm.submit("hello").status().state == "queued"
        with make_app(settings) as app, app.connection() as connection:
            assert connection.default_channel.client.ping()


def test_what_sentinels_say_is_told(tmp_path: Path) -> None:
    """A service that no Sentinel knows, and Sentinels that are away, are named in the message, without passwords. The
    doctor says what a failover would find."""
    with replicated(tmp_path, sentinels=1) as service:
        wrong = service.url.replace(f"/{SERVICE}", "/shed")
        with Farm(url=wrong) as farm, pytest.raises(ServerUnreachable, match="no service shed") as unknown:
            farm.submit("x")
        settings = load_settings(redis={"url": service.url})
        checks = {check.name: check for check in check_server(settings)}
        assert (checks["server"].verdict, checks["replicas"].verdict) == ("ok", "warn")
        assert "min-replicas-to-write" in checks["replicas"].remedy
        service.sentinels[0].stop()
        with Farm(settings) as farm, pytest.raises(ServerUnreachable, match="Sentinels: no answer") as away:
            farm.submit("x")
        for error in (unknown, away):
            assert service.master.password not in str(error.value)
            assert f"127.0.0.1:{service.sentinels[0].port}" in str(error.value)
        assert [check.verdict for check in check_server(settings)] == ["fail"]
