"""Reaching the server: what is tried again, what is not, and that a call ends in time whatever the server does."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import redis

from farm.errors import ServerUnreachable
from farm.ledger.jobs import Jobs
from farm.settings import load_settings

pytestmark = pytest.mark.fast

LIMIT_S = 0.4
SLACK_S = 0.4  # of a busy machine
Serve = Callable[[socket.socket], None]


@contextlib.contextmanager
def server(serve: Serve) -> Iterator[int]:
    """A port where each connection is served by a function in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=run, args=(connection,), daemon=True).start()

        def run(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextlib.contextmanager
def ledger(host: str, port: int, limit_s: float = LIMIT_S) -> Iterator[Jobs]:
    url = f"redis://:secret@{host}:{port}/0"
    jobs = Jobs(load_settings(redis={"url": url, "timeout_s": limit_s, "retries": 3}))
    yield jobs
    jobs.client.close()


def fails_in_time(call: Callable[[], object], match: str = "does not answer", limit_s: float = LIMIT_S) -> None:
    """See a call raise ServerUnreachable, no earlier than its limit and no later, without the password."""
    began = time.monotonic()
    with pytest.raises(ServerUnreachable, match=match) as error:
        call()
    took_s = time.monotonic() - began
    assert took_s < limit_s + SLACK_S
    assert "secret" not in str(error.value)


def until_closed(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def test_a_silent_server_is_asked_once() -> None:
    """A server that takes connections and says nothing costs one time limit, not one for each of several tries."""
    seen = []

    def serve(connection: socket.socket) -> None:
        seen.append(connection)
        until_closed(connection)

    with server(serve) as port, ledger("127.0.0.1", port) as jobs:
        fails_in_time(lambda: jobs.view("order-7"), match=f"127.0.0.1:{port} does not answer")
    assert len(seen) == 1


def test_a_trickle_is_no_answer() -> None:
    """A server that sends a byte now and then does not keep a caller longer than one that sends none."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"+")
        pause = threading.Event()
        while not pause.wait(LIMIT_S / 4):
            connection.sendall(b"O")

    with server(serve) as port, ledger("127.0.0.1", port) as jobs:
        fails_in_time(lambda: jobs.view("order-7"))


def test_repetitions_share_the_limit() -> None:
    """Connections that break late, one after another, cost a caller its limit and not one limit each."""

    def serve(connection: socket.socket) -> None:
        connection.recv(1)
        threading.Event().wait(LIMIT_S * 0.7)

    with server(serve) as port, ledger("127.0.0.1", port) as jobs:
        fails_in_time(lambda: jobs.view("order-7"))


def test_a_server_that_reads_nothing_stops_a_large_request_in_time() -> None:
    """A submission that the server does not take in is given up within the limit."""
    hold = threading.Event()
    limit_s = 1.0  # packing so much takes its time where many share a core

    def serve(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(3):  # what a new connection says first
            connection.recv(4096)
            connection.sendall(b"+OK\r\n")
        hold.wait(10)

    with server(serve) as port, ledger("127.0.0.1", port, limit_s) as jobs:
        pool, large = jobs.client.connection_pool, "x" * 12_000_000  # more than the kernel keeps for both ends
        pool.release(pool.get_connection())
        given_up = "Timeout writing|time limit has passed"
        fails_in_time(lambda: jobs.scripts.call("submit", large), given_up, limit_s)
        hold.set()


def test_an_address_that_takes_no_connection_is_given_up_in_time() -> None:
    """Connecting counts: a host that drops what it is sent costs one time limit."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # what the kernel keeps, and more
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        jobs = stack.enter_context(ledger("127.0.0.1", full.getsockname()[1]))
        fails_in_time(lambda: jobs.view("order-7"))


def test_a_name_server_that_is_silent_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding the address counts too, which the operating system itself gives half a minute."""
    asked, answer = socket.getaddrinfo, threading.Event()

    def slow(host: str, *args: object, flags: int = 0, **kwargs: object) -> object:
        if not flags & socket.AI_NUMERICHOST:
            answer.wait(10)
        return asked(host, *args, flags=flags, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with ledger("redis.example", 6379) as jobs:
        fails_in_time(lambda: jobs.view("order-7"), match="no address for redis.example")
    answer.set()


def test_a_dead_address_leaves_time_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two addresses of one name the second is tried in time when the first swallows everything."""

    def serve(connection: socket.socket) -> None:
        until_closed(connection)

    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        port = stack.enter_context(server(serve))
        both = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", full.getsockname()),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]
        monkeypatch.setattr("farm.driver.resolve", lambda *_: both)
        jobs = stack.enter_context(ledger("redis.example", 6379))
        fails_in_time(lambda: jobs.view("order-7"), match="Timeout reading")  # it came as far as asking the second


def test_calls_that_belong_together_share_one_limit() -> None:
    """A block of calls ends within the limit of one, however many there are."""
    with server(until_closed) as port, ledger("127.0.0.1", port) as jobs:

        def block() -> None:
            with jobs.in_time():
                for _ in range(3):
                    with contextlib.suppress(ServerUnreachable):
                        jobs.view("order-7")
                jobs.view("order-7")

        fails_in_time(block)


def test_one_failure_closes_the_idle_connections() -> None:
    """When the server behind all connections went silent, one call finds out, and the next connects anew."""
    is_old, old = threading.Event(), set[socket.socket]()

    def serve(connection: socket.socket) -> None:
        if not is_old.is_set():
            old.add(connection)
        while connection.recv(4096):
            if is_old.is_set() and connection in old:
                continue
            connection.sendall(b"+OK\r\n")

    with server(serve) as port, ledger("127.0.0.1", port) as jobs:
        pool = jobs.client.connection_pool
        for connection in [pool.get_connection() for _ in range(5)]:
            pool.release(connection)
        is_old.set()
        with pytest.raises(redis.TimeoutError):
            jobs.client.get("x")
        assert jobs.client.get("x") == "OK"
