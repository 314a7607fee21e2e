"""The farm on the original Redis 7, beside the Valkey that all other tests run on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from farm import Farm, InvalidRequest, JobCancelled, ServerFull
from farm.broker import make_app
from farm.ledger.jobs import Jobs
from farm.local.server import EmbeddedServer
from farm.settings import load_settings
from tests.conftest import tool, wait_until
from tests.workers import WorkerProcess


@pytest.fixture(scope="module")
def redis7(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """Debian's redis-server."""
    folder = tmp_path_factory.mktemp("redis7")
    server = EmbeddedServer(folder, binary=tool("redis-server", "redis-server"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def farm(redis7: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """A farm with one worker on it."""
    settings = load_settings(redis={"url": redis7.url})
    worker = WorkerProcess(Jobs(settings), tmp_path_factory.mktemp("worker"), "w1").wait_ready()
    with Farm(settings) as running:
        yield running
    worker.kill()
    worker.jobs.client.close()


def test_answers_streams_and_cancels(farm: Farm) -> None:
    """Submitting, waiting, streaming, mapping and cancelling work on Redis 7 as on Valkey."""
    assert len(farm.generate("one", max_tokens=5, timeout=30).token_ids) == 5
    job = farm.submit("two", max_tokens=20)
    assert "".join(delta.text for delta in job.stream()) == job.result(30).text
    assert [len(c.token_ids) for c in farm.map([f"p{i}" for i in range(50)], max_tokens=3)] == [3] * 50
    endless = farm.submit("three", max_tokens=2000, priority="low")
    endless.cancel()
    with pytest.raises(JobCancelled):
        endless.result(30)
    with pytest.raises(InvalidRequest):
        farm.submit("")


def test_plain_celery(farm: Farm, redis7: EmbeddedServer) -> None:
    """A foreign Celery app gets its completion over Redis 7."""
    app = Celery("unrelated", broker=redis7.url, backend=redis7.url, set_as_current=False)
    body = app.send_task("farm.generate", kwargs={"prompt": "four", "max_tokens": 3}).get(timeout=30)
    assert body["state"] == "succeeded"
    app.close()


def test_a_socket_file(tmp_path: Path) -> None:
    """Ledger and broker reach a server through its socket file."""
    server = EmbeddedServer(tmp_path, options={"unixsocket": str(tmp_path / "s"), "unixsocketperm": "700"})
    server.start()
    settings = load_settings(redis={"url": f"unix://:{server.password}@{tmp_path / 's'}?db=1"})
    with Farm(settings) as farm, make_app(settings) as app, app.connection() as connection:
        assert farm.submit("one").status().state == "queued"
        assert connection.default_channel.client.dbsize() > 0
    server.kill()


def test_a_folder_of_any_name(tmp_path: Path) -> None:
    """A server keeps its data in its folder, however that is called."""
    folder = tmp_path / 'a "day\'s" $work\nwith \\'
    folder.mkdir()
    server = EmbeddedServer(folder)
    server.start()
    server.stop()
    assert (folder / "appendonlydir").is_dir()


def test_a_full_server_refuses_new_jobs_and_answers_the_others(farm: Farm) -> None:
    """Short of memory, the farm refuses new jobs before anything is written, and answers all that it had accepted."""
    client = farm.ledger.client
    client.setrange("ballast", 100_000_000, "x")
    jobs = farm.submit_many([f"q{i}" for i in range(100)], max_tokens=500)
    client.config_set("maxmemory", int(client.info("memory")["used_memory"] / 0.85))
    try:
        wait_until(lambda: _is_refused(farm), why="new jobs to be refused")
        assert {job.result(60).finish_reason for job in jobs} == {"length"}
    finally:
        client.config_set("maxmemory", 0)
        client.delete("ballast")
    wait_until(lambda: not _is_refused(farm), why="new jobs to be taken again")


def _is_refused(farm: Farm) -> bool:
    try:
        farm.submit("one more", max_tokens=1).result(30)
    except ServerFull:
        return True
    return False
