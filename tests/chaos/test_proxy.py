"""The proxy that breaks connections breaks them as it says, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from farm.local.server import EmbeddedServer
from tests.chaos.proxy import FaultProxy

pytestmark = pytest.mark.fast


@pytest.fixture
def proxy(server: EmbeddedServer, client: redis.Redis) -> Iterator[FaultProxy]:
    """A proxy before the emptied test server."""
    with FaultProxy(server.url) as running:
        yield running


@pytest.fixture
def through(proxy: FaultProxy) -> Iterator[redis.Redis]:
    """A client that asks through the proxy, once, and has a connection."""
    with redis.Redis.from_url(
        proxy.url, decode_responses=True, socket_timeout=1.0, retry=Retry(NoBackoff(), 0)
    ) as connection:
        connection.ping()
        yield connection


def test_it_forwards(proxy: FaultProxy, through: redis.Redis, client: redis.Redis) -> None:
    """Without a fault, large values pass both ways and are counted."""
    value = "x" * 3_000_000
    assert through.set("big", value)
    assert through.get("big") == value == client.get("big")
    assert proxy.counts.connections == 1
    assert proxy.counts.bytes_up > len(value) < proxy.counts.bytes_down


def test_cut_closes_what_is_open_and_takes_new_connections(proxy: FaultProxy, through: redis.Redis) -> None:
    """After a cut the old connection is gone, on the server too, and the next one works."""
    old = through.client_id()
    idle = through.connection_pool.get_connection()
    for _ in range(2):
        proxy.cut()
    with pytest.raises(redis.ConnectionError):
        idle.read_response()
    through.connection_pool.release(idle)
    assert through.client_id() != old
    assert [known["id"] for known in through.client_list()].count(str(old)) == 0


def test_refuse_turns_connections_away_until_accept(proxy: FaultProxy, through: redis.Redis) -> None:
    """A refusing proxy looks like a server that is down; accepting again keeps the port."""
    for _ in range(2):
        proxy.refuse()
    for _ in range(2):
        with pytest.raises(redis.ConnectionError):
            through.ping()
    with pytest.raises(ConnectionRefusedError):
        through.connection_pool.make_connection()._connect()  # type: ignore[attr-defined]
    for _ in range(2):
        proxy.accept()
    assert through.ping()


def test_stall_keeps_connections_and_forwards_later(
    proxy: FaultProxy, through: redis.Redis, client: redis.Redis
) -> None:
    """While stalled nothing passes, on new connections too; what was asked meanwhile is done after it."""
    for _ in range(2):
        proxy.stall()
    for key in ("old", "new"):
        with pytest.raises(redis.TimeoutError):
            through.set(key, 1)
    assert client.dbsize() == 0
    for _ in range(2):
        proxy.resume()
    assert through.ping()
    assert client.get("old") == "1"


def test_delay_makes_each_answer_later(proxy: FaultProxy, through: redis.Redis) -> None:
    """A request and its reply are each delayed."""
    proxy.delay(0.1)
    started = time.monotonic()
    through.ping()
    assert time.monotonic() - started >= 0.2
    proxy.delay(0)
    assert through.ping()


def test_a_dropped_reply_was_executed(proxy: FaultProxy, through: redis.Redis, client: redis.Redis) -> None:
    """The server runs the matching request, its client sees a broken connection, and others are left alone."""
    proxy.drop_next_reply(matching=b"INCR")
    assert through.set("a", 1)
    with pytest.raises(redis.ConnectionError):
        through.incr("a")
    assert client.get("a") == "2"
    assert through.incr("a") == 3
    assert (proxy.counts.replies_dropped, proxy.traps_left) == (1, 0)


def test_a_request_that_is_cut_before_was_not_executed(
    proxy: FaultProxy, through: redis.Redis, client: redis.Redis
) -> None:
    """The server never sees the matching request."""
    proxy.cut_before_next_request(matching=b"INCR")
    assert through.set("a", 1)
    with pytest.raises(redis.ConnectionError):
        through.incr("a")
    assert client.get("a") == "1"
    assert proxy.counts.requests_cut == 1


def test_single_faults_add_up_and_heal_ends_all(proxy: FaultProxy, through: redis.Redis) -> None:
    """Two single faults hit two requests; heal takes back what is left."""
    for _ in range(3):
        proxy.cut_before_next_request(matching=b"INCR")
    for _ in range(2):
        with pytest.raises(redis.ConnectionError):
            through.incr("a")
    proxy.stall()
    proxy.delay(5)
    proxy.refuse()
    proxy.heal()
    assert proxy.traps_left == 0
    assert through.incr("a") == 1
