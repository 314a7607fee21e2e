"""Asking Sentinels who the master is: each for a share of the time, the one that answered last first."""

from __future__ import annotations

import threading
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from farm.driver import Address, Client, Parser, TcpConnection, TlsConnection, in_time
from farm.redis_url import SentinelUrl
from farm.time_limit import time_limit


class Sentinels:
    """The Sentinels of one service. Thread-safe."""

    def __init__(self, url: SentinelUrl, timeout_s: float) -> None:
        """timeout_s: how long all of them together may take."""
        self._service = url.service
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._order = [_client(address, url, timeout_s) for address in url.sentinels]

    def master(self) -> Address:
        """The master's address, by the first that knows one. Raises redis' ConnectionError when none does."""
        with self._lock:
            order = list(self._order)
        heard = []
        # A silent one must leave time for the others and for the master itself.
        share_s = in_time(self._timeout_s) / (len(order) + 1)
        for sentinel in order:
            try:
                with time_limit(share_s):
                    found = sentinel.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", self._service)
            except redis.exceptions.AuthenticationError:
                raise redis.exceptions.ConnectionError("a Sentinel wants ?sentinel_password= in the URL") from None
            except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
                heard.append("no answer")
                continue
            except redis.exceptions.ResponseError as error:
                heard.append(str(error))
                continue
            if found:
                with self._lock:
                    self._order.sort(key=lambda other: other is not sentinel)
                return str(found[0]), int(found[1])
            heard.append(f"no service {self._service}")
        raise redis.exceptions.ConnectionError(f"Sentinels: {', '.join(heard)}")

    def doubt(self) -> None:
        """Ask another one first the next time: what the first one said was no master."""
        with self._lock:
            self._order.append(self._order.pop(0))

    def close(self) -> None:
        """Let go of the connections."""
        for sentinel in self._order:
            sentinel.close()


def _client(address: Address, url: SentinelUrl, timeout_s: float) -> Client:
    host, port = address
    options: dict[str, Any] = {
        "host": host,
        "port": port,
        "username": url.sentinel_username,
        "password": url.sentinel_password,
        "parser_class": Parser,
        "decode_responses": True,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        **(url.tls or {}),
    }
    pool = redis.ConnectionPool(connection_class=TcpConnection if url.tls is None else TlsConnection, **options)
    return Client.of(pool, timeout_s)
