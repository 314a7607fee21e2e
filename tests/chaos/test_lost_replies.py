"""Every script, when its reply is lost or its request never arrives: the same call again, and it is done once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from farm import Farm
from farm.connection import connect
from farm.errors import ServerUnreachable
from farm.ledger.files import FileNotFound, Files
from farm.ledger.jobs import Jobs
from farm.ledger.scripts import NAMES, sha, source
from farm.local.server import EmbeddedServer
from farm.settings import load_settings
from tests.chaos.proxy import FaultProxy
from tests.conftest import wait_until
from tests.integration.ledger.farmhand import Field, Hand
from tests.integration.ledger.test_repetition import DEEDS, prepare, steady
from tests.workers import WorkerProcess


@pytest.fixture
def proxy(server: EmbeddedServer, client: redis.Redis) -> Iterator[FaultProxy]:
    """A proxy before the emptied test server, which knows all scripts."""
    for name in NAMES:
        client.script_load(source(name))
    with FaultProxy(server.url) as running:
        yield running


def script_of(deed: str) -> str:
    return deed.split()[0]


@pytest.fixture
def scene(proxy: FaultProxy, request: pytest.FixtureRequest) -> Iterator[tuple[Field, Hand, str]]:
    """A farm in miniature behind the proxy, whose client sends nothing twice by itself."""
    settings = load_settings(redis={"url": proxy.url, "retries": 0})
    field = Field(Jobs(settings, connect(settings.redis)))
    jobs = field.submit(4, deadline_s=60)
    hand = field.worker("barn", 2)
    field.run(hand, jobs[0])
    hand.write(jobs[0], 2)
    field.keep()
    prepare(field, request.node.callspec.params["deed"])
    yield field, hand, jobs[0]
    field.client.close()


@pytest.mark.parametrize("deed", DEEDS)
def test_a_lost_reply_changes_nothing(proxy: FaultProxy, scene: tuple[Field, Hand, str], deed: str) -> None:
    """A script whose reply is lost has run; running it again leaves all as it was."""
    field, hand, job = scene
    proxy.drop_next_reply(matching=sha(script_of(deed)).encode())
    with pytest.raises(ServerUnreachable):
        DEEDS[deed](field, hand, job)
    assert proxy.counts.replies_dropped == 1
    once = steady(field)
    DEEDS[deed](field, hand, job)
    assert steady(field) == once


@pytest.mark.parametrize("deed", DEEDS)
def test_a_request_that_is_cut_off_changes_nothing(
    proxy: FaultProxy, scene: tuple[Field, Hand, str], deed: str
) -> None:
    """A script whose request never arrives has not run: the caller hears of it, and may call again."""
    field, hand, job = scene
    before = steady(field)
    proxy.cut_before_next_request(matching=sha(script_of(deed)).encode())
    with pytest.raises(ServerUnreachable):
        DEEDS[deed](field, hand, job)
    assert steady(field) == before
    DEEDS[deed](field, hand, job)


@pytest.mark.parametrize("is_lost", [True, False], ids=["reply lost", "request cut off"])
def test_a_client_repeats_a_broken_submission_itself(proxy: FaultProxy, client: redis.Redis, is_lost: bool) -> None:
    """One broken connection during submit costs its caller nothing, and there is one job."""
    fault = proxy.drop_next_reply if is_lost else proxy.cut_before_next_request
    with Farm(url=proxy.url) as farm:
        farm.submit("warm")
        fault(matching=sha("submit").encode())
        job = farm.submit("hello", max_tokens=3)
        assert proxy.traps_left == 0
        assert client.hget("{farm}:totals", "submitted") == "2"
        fault(matching=sha("cancel").encode())
        assert job.cancel() == "cancelled"
        assert client.hget("{farm}:totals", "cancelled") == "1"


def test_a_file_whose_deletion_is_repeated_is_deleted(proxy: FaultProxy) -> None:
    """A reply lost on the way costs its caller nothing: the file was there, and it is gone."""
    jobs = Jobs(load_settings(redis={"url": proxy.url}))
    files = Files(jobs)
    files.add("file-1", "ann", "files/1", filename="a", purpose="batch", size=9)
    proxy.drop_next_reply(matching=sha("file_drop").encode())
    assert files.drop("file-1", "ann") == "files/1"
    assert proxy.counts.replies_dropped == 1
    with pytest.raises(FileNotFound):
        files.drop("file-1", "ann")
    jobs.client.close()


def test_a_worker_that_loses_a_reply_of_every_kind_wastes_no_attempt(
    proxy: FaultProxy, server: EmbeddedServer, tmp_path: Path
) -> None:
    """A real worker whose calls of each kind lose replies finishes every job in its first attempt, once."""
    behind = Jobs(load_settings(redis={"url": proxy.url}))
    kinds = ("register", "claim", "progress", "finish", "upkeep", "dispatch")
    for name in kinds:
        proxy.drop_next_reply(matching=sha(name).encode())
    with (
        # Without the driver's own repetitions, so that every loss reaches the worker.
        WorkerProcess(behind, tmp_path, "w1", ENGINE__SYNTHETIC_STEP_S=0.01, REDIS__RETRIES=0).wait_ready() as worker,
        Farm(url=server.url) as farm,
    ):
        jobs = farm.submit_many([f"p{n}" for n in range(20)], max_tokens=30)
        views = [job.result(30) and job.status() for job in jobs]
        wait_until(lambda: proxy.traps_left == 0, why="every kind of call")
        assert proxy.counts.replies_dropped == len(kinds)
        assert [(view.attempt, len(view.history), len(view.token_ids)) for view in views] == [(1, 1, 30)] * 20
        assert farm.ledger.client.hget("{farm}:totals", "succeeded") == "20"
        worker.kill()
    behind.client.close()
