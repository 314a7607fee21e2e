"""redis-py, held to time limits: whatever one command needs, connecting and repeating included, ends in time.

redis-py limits each read and write by itself, so that a name server, a few addresses, a handshake, a slow trickle and a
repetition add up. Here all of it shares the limit that ``farm.time_limit`` keeps.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import redis
from redis.client import Pipeline
from redis.connection import Connection, DefaultParser, SSLConnection, UnixDomainSocketConnection
from redis.utils import str_if_bytes

from farm.time_limit import time_left, time_limit

Address = tuple[str, int]


def in_time(most_s: float) -> float:
    """How long the next step may take: the time left, at most ``most_s``. Raises redis' TimeoutError when none is."""
    left = time_left()
    if left is None:
        return most_s
    if left <= 0:
        raise redis.exceptions.TimeoutError("its time limit has passed")
    return min(left, most_s)


class Parser(DefaultParser):  # type: ignore[misc, valid-type]  # redis-py gives the one for hiredis no public name
    """Reads within the time limit, however slowly bytes trickle in."""

    def read_from_socket(self, timeout: Any = None, raise_on_timeout: bool = True) -> Any:
        """Read what is there. ``timeout`` is the limit of one read."""
        most_s = timeout if isinstance(timeout, (int, float)) else self._socket_timeout
        return super().read_from_socket(
            timeout=in_time(most_s) if most_s else most_s, raise_on_timeout=raise_on_timeout
        )


class _Timely:
    """A connection that writes within the time limit."""

    _sock: Any
    socket_timeout: Any
    connect_check_health: Any
    check_health: Any

    def send_packed_command(self, command: bytes | Iterable[bytes], check_health: bool = True) -> None:
        """Send, connecting first if need be."""
        if self._sock is None:
            self.connect_check_health(check_health=False)
        if check_health:
            self.check_health()
        if self._sock is not None:
            self._sock.settimeout(in_time(self.socket_timeout))
        # In one piece: each would have the limit to itself.
        whole = command if isinstance(command, bytes) else b"".join(command)
        super().send_packed_command([whole], check_health=False)  # type: ignore[misc]


class TcpConnection(_Timely, Connection):
    """A connection over TCP."""

    @property
    def _connect_s(self) -> float:
        return float(self.socket_connect_timeout or 0) or float(self.socket_timeout)

    def _connect(self) -> socket.socket:
        found = resolve(self.host, int(self.port), in_time(self._connect_s))
        last: OSError = OSError(f"{self.host} has no address")
        for tried, (family, kind, protocol, _, address) in enumerate(found):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in self.socket_keepalive_options.items():
                    sock.setsockopt(socket.IPPROTO_TCP, option, value)
                # The first address may be a black hole: leave time for the others.
                sock.settimeout(in_time(self._connect_s) / (len(found) - tried))
                sock.connect(address)
                sock.settimeout(in_time(self.socket_timeout))
            except OSError as error:
                sock.close()
                last = error
            except redis.exceptions.TimeoutError:
                sock.close()
                raise
            else:
                return sock
        raise last


class TlsConnection(SSLConnection, TcpConnection):
    """A connection over TLS."""


class UnixConnection(_Timely, UnixDomainSocketConnection):
    """A connection over a socket file."""


class Client(redis.Redis):
    """A client whose every command and pipeline ends within ``limit_s``, or within the limit around it."""

    limit_s: float = 2.0
    on_close: Callable[[], None] | None = None

    @classmethod
    def of(cls, pool: redis.ConnectionPool, limit_s: float) -> Self:
        """A client of one's own pool."""
        client = cls(connection_pool=pool)
        client.auto_close_connection_pool = True
        client.limit_s = limit_s
        return client

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command."""
        with time_limit(self.limit_s), _distrust(self.connection_pool):
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """A pipeline under the same limit."""
        pipe = _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipe.limit_s = self.limit_s
        return pipe

    def close(self) -> None:
        """Let go of all connections."""
        super().close()
        if self.on_close is not None:
            self.on_close()


class _Pipeline(Pipeline):
    limit_s: float = 2.0

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send all and read all answers."""
        with time_limit(self.limit_s), _distrust(self.connection_pool):
            return super().execute(raise_on_error)


@contextmanager
def _distrust(pool: redis.ConnectionPool) -> Iterator[None]:
    """Close idle connections when one has failed: each might cost a caller its time, to find the same."""
    try:
        yield
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
        pool.disconnect(inuse_connections=False)
        raise


class MasterConnection(TcpConnection):
    """A connection to whichever server is the master when it connects.

    find: tells its address. doubt: is told when what is there is no master.
    """

    def __init__(self, *, find: Callable[[], Address], doubt: Callable[[], None], **kwargs: Any) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        self._find = find
        self._doubt = doubt

    def _connect(self) -> socket.socket:
        self.host, self.port = self._find()
        try:
            return super()._connect()
        except (OSError, redis.exceptions.TimeoutError):
            self._doubt()
            raise

    def on_connect_check_health(self, check_health: bool = True) -> None:
        """Greet the server, and see that it is the master: a Sentinel may not know yet."""
        super().on_connect_check_health(check_health)
        try:
            self.send_command("ROLE", check_health=False)  # type: ignore[no-untyped-call]
            role = str_if_bytes(self.read_response()[0])
        except redis.exceptions.NoPermissionError:
            return
        if role != "master":
            self._doubt()
            raise redis.exceptions.ConnectionError(f"{self.host}:{self.port} is no master but a {role}")

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read an answer. A master that was demoted, or that lost its replicas as one does whose replica was promoted,
        is left, so that a repetition finds its successor.
        """
        try:
            return super().read_response(*args, **kwargs)
        except redis.exceptions.ResponseError as error:
            if not isinstance(error, redis.exceptions.ReadOnlyError) and not str(error).startswith("NOREPLICAS"):
                raise
            self.disconnect()  # type: ignore[no-untyped-call]
            raise redis.exceptions.ConnectionError(f"{self.host}:{self.port}: {error}") from None


class MasterTlsConnection(SSLConnection, MasterConnection):
    """A connection to the master over TLS."""


def resolve(host: str, port: int, timeout_s: float) -> list[Any]:
    """``socket.getaddrinfo`` within a time limit, which it has none of. Raises OSError, redis' TimeoutError."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        pass  # a name
    answers: queue.SimpleQueue[list[Any] | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            answers.put(error)

    threading.Thread(target=ask, name="farm-resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=timeout_s)
    except queue.Empty:
        raise redis.exceptions.TimeoutError(f"no address for {host} within {timeout_s:.1f} s") from None
    if isinstance(answer, OSError):
        raise answer
    return answer
