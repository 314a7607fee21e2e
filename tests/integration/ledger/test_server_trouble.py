"""A server that is full, forgetful, loading, read-only or gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from farm import keys
from farm.connection import our_errors
from farm.contracts import JobState
from farm.errors import ServerFull, ServerUnreachable
from farm.ledger.jobs import Jobs
from farm.ledger.scripts import NAMES, source
from farm.local.server import EmbeddedServer
from farm.settings import load_settings
from tests.integration.ledger.farmhand import Field
from tests.integration.ledger.invariants import check


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[EmbeddedServer, Field]]:
    """A server of one's own, to be mistreated."""
    server = EmbeddedServer(tmp_path / "server")
    server.start()
    field = Field(Jobs(load_settings(redis={"url": server.url, "retries": 0})))
    yield server, field
    field.client.close()
    server.stop()


def test_a_full_server_takes_no_new_job_and_loses_none(own: tuple[EmbeddedServer, Field]) -> None:
    """Out of memory, submit is refused before it wrote anything, and all that was accepted still runs and ends."""
    _, field = own
    jobs = field.submit(4)
    hand = field.worker(capacity=4)
    for job in jobs[:3]:
        field.run(hand, job)
    field.client.config_set("maxmemory", 1)
    before = field.dump()
    refused = field.place("no room", job_id="refused")
    for _ in range(2):
        with pytest.raises(ServerFull, match="out of memory") as error:
            field.jobs.submit([refused])
        assert (error.value.retryable, error.value.http_status) == (True, 503)
    assert field.dump() == before
    hand.write(jobs[0], 3)
    hand.finish(jobs[0], tokens=2)
    hand.release("retry", "busy", [jobs[1]])
    field.jobs.cancel([jobs[2]])
    hand.runs.clear()
    field.worker("mill")
    field.keep()
    for job in (jobs[1], jobs[3]):
        field.run(hand, job)
        hand.finish(job, tokens=1)
    assert [field.state(job) for job in jobs] == ["succeeded", "succeeded", "cancelled", "succeeded"]
    field.client.config_set("maxmemory", 0)
    assert field.jobs.submit([refused]) == [True]
    check(field)


def test_a_full_server_that_forgot_its_scripts_takes_them_again(own: tuple[EmbeddedServer, Field]) -> None:
    """A restart at the limit of memory does not keep accepted jobs from ending."""
    _, field = own
    [job] = field.submit()
    hand = field.worker()
    field.run(hand, job)
    field.client.config_set("maxmemory", 1)
    field.client.script_flush()
    assert hand.finish(job, tokens=2) is None
    assert field.view(job).state is JobState.SUCCEEDED


def test_a_server_that_forgot_its_scripts_is_told_again(field: Field) -> None:
    """After SCRIPT FLUSH or a restart every call works as before."""
    flush = field.client.script_flush
    flush()
    [job] = field.submit()
    flush()
    hand = field.worker()
    for step in (field.keep, field.dispatch):
        flush()
        step()
    flush()
    hand.claim(field.mail[job])
    flush()
    hand.write(job, 1)
    flush()
    hand.release("drain", "drain")
    field.run(hand, job)
    flush()
    hand.finish(job, tokens=1)
    flush()
    assert field.jobs.cancel([job]) == [JobState.SUCCEEDED]
    flush()
    assert hand.attempts.leave()
    [waiting] = field.submit()
    flush()
    assert field.jobs.view(waiting, with_position=True).position == 1


@pytest.mark.fast
def test_only_what_accepts_may_be_refused_for_lack_of_memory() -> None:
    """Every script but those that accept something new, and those that only read, may run when memory is full."""
    heads = {name: source(name).splitlines()[0] for name in NAMES}
    assert {heads.pop(name) for name in ("submit", "file_add", "batch_add")} == {"#!lua"}
    assert {heads.pop(name) for name in ("position", "pieces", "gauges")} == {"#!lua flags=no-writes"}
    assert set(heads.values()) == {"#!lua flags=allow-oom"}


def test_a_read_only_server_is_unreachable_and_not_asked_again_on_the_same_connection(
    own: tuple[EmbeddedServer, Field],
) -> None:
    """A demoted master is reported as unreachable, which callers retry, and the next call connects anew."""
    server, field = own
    field.submit()
    connection = field.client.client_id()
    field.client.replicaof("127.0.0.1", str(server.port))
    with pytest.raises(ServerUnreachable, match="cannot serve now"):
        field.submit()
    assert field.client.client_id() != connection
    field.client.execute_command("REPLICAOF", "NO", "ONE")
    assert len(field.submit()) == 1


@pytest.mark.fast
@pytest.mark.parametrize(
    "answer",
    [
        "READONLY You can't write against a read only replica.",
        "LOADING Redis is loading the dataset in memory",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "NOREPLICAS Not enough good replicas to write.",
        "MISCONF Errors writing to the AOF file: No space left on device",
        "CLUSTERDOWN The cluster is down",
        "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
        "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "ERR max number of clients reached",
    ],
)
def test_a_server_that_cannot_serve_now_is_unreachable(answer: str) -> None:
    """Whatever a server says while it starts, fails over or has no disk, callers see one retryable error."""
    error = redis._parsers.base.BaseParser.parse_error(answer)
    with pytest.raises(ServerUnreachable) as caught, our_errors("there:1"):
        raise error
    assert caught.value.retryable
    assert "there:1" in str(caught.value)


@pytest.mark.fast
def test_a_full_server_is_told_apart() -> None:
    """Out of memory is ServerFull, whether the driver has a class for the answer or not."""
    text = "OOM command not allowed when used memory > 'maxmemory'."
    for error in (redis._parsers.base.BaseParser.parse_error(text), redis.exceptions.ResponseError(text)):
        with pytest.raises(ServerFull), our_errors("there:1"):
            raise error


@pytest.mark.fast
def test_a_mistake_of_ours_is_no_outage() -> None:
    """Errors in our own scripts are not taken for a server that is down."""
    with pytest.raises(redis.exceptions.ResponseError), our_errors("there:1"):
        raise redis._parsers.base.BaseParser.parse_error("ERR value is not an integer or out of range")


def test_no_server_is_said_without_the_password(own: tuple[EmbeddedServer, Field]) -> None:
    """When nothing answers, the message names address and setting, and never the password."""
    server, field = own
    server.kill()
    with pytest.raises(ServerUnreachable) as error:
        field.submit()
    assert f"127.0.0.1:{server.port}" in str(error.value)
    assert "FARM_REDIS__URL" in str(error.value)
    assert server.password not in str(error.value)


def test_accepted_jobs_outlive_a_killed_server(own: tuple[EmbeddedServer, Field]) -> None:
    """With durability fsync, what submit accepted is there after the server was killed and started again."""
    server, field = own
    settings = load_settings(redis={"url": server.url, "durability": "fsync"})
    field.client.config_set("appendfsync", "always")
    jobs = Jobs(settings, field.client)
    placed = [field.place(f"{n}") for n in range(150)]
    jobs.submit(placed)
    server.kill()
    server.start()
    assert all(field.state(job.id) == "queued" for job in placed)
    assert field.client.hget(keys.TOTALS, "submitted") == "150"
