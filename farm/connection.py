"""One way to reach the Redis server: time limits, few retries, and our errors instead of the driver's.

A command ends within ``redis.timeout_s`` whatever happens. Retries are few because a lost reply may mean that the
command ran: every script may safely run twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from farm import redis_url
from farm.driver import (
    Client,
    MasterConnection,
    MasterTlsConnection,
    Parser,
    TcpConnection,
    TlsConnection,
    UnixConnection,
)
from farm.errors import ServerFull, ServerUnreachable, SettingsError
from farm.sentinel import Sentinels
from farm.settings import RedisSettings

# Codes of a server that is starting, failing over, short of replicas or disk, or busy: another time it may answer.
UNABLE = frozenset(
    ("LOADING", "MASTERDOWN", "READONLY", "NOREPLICAS", "MISCONF", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "UNBLOCKED")
)
_CHECK_URL = "check FARM_REDIS__URL if that is set"
CONNECTIONS = {"redis": TcpConnection, "rediss": TlsConnection, "unix": UnixConnection}


def connect(settings: RedisSettings, *, read_timeout_s: float | None = None) -> redis.Redis:
    """A client for the server that ``settings.url`` names; nothing is sent yet.

    read_timeout_s: how long an answer may take, if longer than ``settings.timeout_s`` (blocking reads).
    Raises SettingsError when no URL is set or it makes no sense.
    """
    if settings.url is None:
        raise SettingsError(
            "FARM_REDIS__URL is not set and no local farm is running; set it, or start one with: farm up"
        )
    url = settings.url.get_secret_value()
    most_s = read_timeout_s or settings.timeout_s
    common: dict[str, Any] = {
        "parser_class": Parser,
        "decode_responses": True,
        "socket_timeout": most_s,
        "socket_connect_timeout": settings.timeout_s,
        "health_check_interval": 15,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),  # would be a round trip per connection
        # Not after a timeout: the time is up.
        "retry": Retry(
            ExponentialBackoff(cap=0.2, base=0.02),
            settings.retries,
            supported_errors=(redis.exceptions.ConnectionError,),
        ),
    }
    if (service := redis_url.sentinel_url(url)) is not None:
        sentinels = Sentinels(service, settings.timeout_s)
        client = Client.of(_masters_pool(service, sentinels, common), most_s)
        client.on_close = sentinels.close
        return client
    scheme = urlsplit(redis_url.checked(url)).scheme
    return Client.of(redis.ConnectionPool.from_url(url, connection_class=CONNECTIONS[scheme], **common), most_s)


def _masters_pool(service: redis_url.SentinelUrl, sentinels: Sentinels, common: dict[str, Any]) -> redis.ConnectionPool:
    options: dict[str, Any] = {
        **common,
        "find": sentinels.master,
        "doubt": sentinels.doubt,
        "db": service.db,
        "username": service.username,
        "password": service.password,
        **(service.tls or {}),
    }
    return redis.ConnectionPool(
        connection_class=MasterConnection if service.tls is None else MasterTlsConnection, **options
    )


def address(settings: RedisSettings) -> str:
    """Where the server is, for messages, without credentials."""
    return "no server" if settings.url is None else redis_url.where(settings.url.get_secret_value())


def is_watched(settings: RedisSettings) -> bool:
    """Whether the server is found through Sentinels."""
    return settings.url is not None and redis_url.sentinel_url(settings.url.get_secret_value()) is not None


@contextmanager
def our_errors(where: str) -> Iterator[None]:
    """Turn the driver's errors into ServerUnreachable and ServerFull; ``where`` is the server's address."""
    try:
        yield
    except redis.exceptions.AuthenticationError:
        raise ServerUnreachable(f"Redis at {where} refused the password; {_CHECK_URL}") from None
    except redis.exceptions.OutOfMemoryError:
        raise server_full(where) from None
    except redis.exceptions.InvalidResponse:
        raise ServerUnreachable(f"what answers at {where} is no Redis server; {_CHECK_URL}") from None
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError) as error:
        raise ServerUnreachable(
            f"Redis at {where} does not answer ({_short(error)}); check that it runs, and FARM_REDIS__URL if set"
        ) from None
    except redis.exceptions.ResponseError as error:
        if _code(error) == "OOM":
            raise server_full(where) from None
        if is_transient(error):
            raise ServerUnreachable(f"Redis at {where} cannot serve now ({_short(error)}); try again") from None
        raise


def is_transient(error: redis.exceptions.ResponseError) -> bool:
    """Whether another time the server may answer otherwise."""
    return _code(error) in UNABLE


def _code(error: redis.exceptions.ResponseError) -> str:
    # The driver takes the code off the errors that it has a class for, and leaves it on all others.
    return getattr(error, "status_code", None) or str(error).partition(" ")[0]


def server_full(where: str) -> ServerFull:
    """The error for a server that can take no more jobs."""
    return ServerFull(
        f"Redis at {where} is nearly out of memory; wait for results to be trimmed or raise its maxmemory"
    )


def _short(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text[:120].rstrip(".")
