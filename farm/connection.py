"""One way to reach the Redis server: time limits, few retries, and our errors instead of the driver's.

Retries are few because a lost reply may mean that the command ran: every script may safely run twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from farm.errors import ServerFull, ServerUnreachable, SettingsError
from farm.settings import RedisSettings

# Codes of a server that is starting, failing over, short of replicas or disk, or busy: another time it may answer.
UNABLE = frozenset(
    ("LOADING", "MASTERDOWN", "READONLY", "NOREPLICAS", "MISCONF", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "UNBLOCKED")
)
SCHEMES = ("redis", "rediss", "unix")


def connect(settings: RedisSettings, *, read_timeout_s: float | None = None) -> redis.Redis:
    """A client for the server that ``settings.url`` names; nothing is sent yet.

    read_timeout_s: how long an answer may take, if longer than ``settings.timeout_s`` (blocking reads).
    Raises SettingsError when no URL is set or its scheme is unknown.
    """
    if settings.url is None:
        raise SettingsError(
            "FARM_REDIS__URL is not set and no local farm is running; set it, or start one with: farm up"
        )
    url = settings.url.get_secret_value()
    if urlsplit(url).scheme not in SCHEMES:
        raise SettingsError(
            f"FARM_REDIS__URL: scheme {urlsplit(url).scheme!r} is unknown; use one of {', '.join(SCHEMES)}"
        )
    client: redis.Redis = redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=read_timeout_s or settings.timeout_s,
        socket_connect_timeout=settings.timeout_s,
        socket_keepalive=True,
        health_check_interval=15,
        # Not after a timeout: connecting and asking are both tried again, and waits would add up to four times as long.
        retry=Retry(
            ExponentialBackoff(cap=0.2, base=0.02),
            settings.retries,
            supported_errors=(redis.exceptions.ConnectionError,),
        ),
    )
    return client


def address(settings: RedisSettings) -> str:
    """The server's host and port for messages, without credentials."""
    if settings.url is None:
        return "no server"
    parts = urlsplit(settings.url.get_secret_value())
    return parts.path if parts.scheme == "unix" else f"{parts.hostname}:{parts.port or 6379}"


@contextmanager
def our_errors(where: str) -> Iterator[None]:
    """Turn the driver's errors into ServerUnreachable and ServerFull; ``where`` is the server's address."""
    try:
        yield
    except redis.exceptions.AuthenticationError:
        raise ServerUnreachable(f"Redis at {where} refused the password; check FARM_REDIS__URL") from None
    except redis.exceptions.OutOfMemoryError:
        raise server_full(where) from None
    except redis.exceptions.InvalidResponse:
        raise ServerUnreachable(f"what answers at {where} is no Redis server; check FARM_REDIS__URL") from None
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError) as error:
        raise ServerUnreachable(
            f"Redis at {where} does not answer ({_short(error)}); check that it runs and FARM_REDIS__URL points to it"
        ) from None
    except redis.exceptions.ResponseError as error:
        # The driver takes the code off the errors that it has a class for, and leaves it on all others.
        code = getattr(error, "status_code", None) or str(error).partition(" ")[0]
        if code == "OOM":
            raise server_full(where) from None
        if code in UNABLE:
            raise ServerUnreachable(f"Redis at {where} cannot serve now ({_short(error)}); try again") from None
        raise


def server_full(where: str) -> ServerFull:
    """The error for a server that can take no more jobs."""
    return ServerFull(
        f"Redis at {where} is nearly out of memory; wait for results to be trimmed or raise its maxmemory"
    )


def _short(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text[:120].rstrip(".")
