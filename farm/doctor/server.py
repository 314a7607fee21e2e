"""Checks of the Redis server: is it there, new enough, keeping what it accepts, throwing nothing away, on time?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import redis

from farm import keys, schema
from farm.connection import address, connect, is_watched, our_errors
from farm.contracts import model_name
from farm.doctor.checks import Check, size
from farm.errors import FarmError, ServerUnreachable
from farm.ledger.jobs import Jobs
from farm.ledger.overview import overview
from farm.settings import Settings

OLDEST = (7, 0)  # scripts with flags
CLOCK_S = 2.0
FULL_SHARE = 0.8
SLOW_MS = 20.0


def check_server(settings: Settings) -> Iterator[Check]:
    """All checks that need the server; one failing check when it does not answer."""
    where = address(settings.redis)
    try:
        with connect(settings.redis) as client, our_errors(where):
            client.ping()
            began = time.perf_counter()
            client.ping()
            took_ms = (time.perf_counter() - began) * 1000
            info: dict[str, Any] = client.info()
            appendfsync = _appendfsync(client)
            seconds, microseconds = client.time()
            ledger = int(client.get(keys.SCHEMA) or schema.FIRST)
            now = time.time()
    except ServerUnreachable as error:
        yield Check("server", "fail", str(error).partition(";")[0], "start it, or correct FARM_REDIS__URL")
        return
    except FarmError as error:
        yield Check("server", "fail", str(error), "correct FARM_REDIS__URL")
        return
    if took_ms > SLOW_MS:
        yield Check("server", "warn", f"{where} answers in {took_ms:.0f} ms", "put workers nearer to it")
    else:
        yield Check("server", "ok", f"{where} answers in {took_ms:.1f} ms")
    yield check_version(info)
    yield check_persistence(info, appendfsync, settings.redis.durability)
    replicas = check_replicas(info, settings.redis.wait_replicas, is_watched(settings.redis))
    if replicas is not None:
        yield replicas
    yield check_eviction(info)
    yield check_memory(info)
    yield check_clock(seconds + microseconds / 1e6 - now)
    yield check_schema(ledger)
    yield _check_workers(settings)


def check_version(info: dict[str, Any]) -> Check:
    """Redis 7 or any Valkey."""
    if valkey := info.get("valkey_version"):
        return Check("version", "ok", f"Valkey {valkey}")
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2]) >= OLDEST:
        return Check("version", "ok", f"Redis {version}")
    return Check("version", "fail", f"Redis {version}", "use Redis 7.0 or newer, or Valkey")


def check_persistence(info: dict[str, Any], appendfsync: str | None, durability: str) -> Check:
    """Whether accepted jobs outlive the server. ``appendfsync`` is None where the server won't tell."""
    if not info.get("aof_enabled"):
        return Check(
            "persistence",
            "warn",
            "no append-only file: when the server dies, jobs that it accepted are lost",
            "set appendonly yes",
        )
    if info.get("aof_last_write_status", "ok") != "ok":
        return Check("persistence", "fail", "the append-only file can't be written", "make room on the server's disk")
    if durability == "fsync" and appendfsync == "no":
        return Check(
            "persistence",
            "fail",
            "appendfsync no never says what is on disk; with FARM_REDIS__DURABILITY=fsync each submit fails",
            "set appendfsync always",
        )
    if durability == "fsync" and appendfsync not in ("always", None):
        return Check(
            "persistence",
            "warn",
            f"append-only file, appendfsync {appendfsync}; with FARM_REDIS__DURABILITY=fsync each submit waits for it",
            "set appendfsync always",
        )
    lost = {"everysec": "; a power cut may take the last second", "no": "; a power cut may take half a minute"}
    words = f", appendfsync {appendfsync}{lost.get(appendfsync, '')}" if appendfsync else ""
    return Check("persistence", "ok", f"append-only file{words}")


def check_replicas(info: dict[str, Any], wanted: int, watched: bool) -> Check | None:
    """Whether a failover finds what the settings promise; None where neither they nor the server speak of replicas.

    wanted: FARM_REDIS__WAIT_REPLICAS. watched: whether Sentinels watch over the server.
    """
    found = int(info.get("connected_slaves", 0))
    if info.get("role") == "slave":
        return Check(
            "replicas", "fail", "the server is a replica and takes no jobs", "name its master or its Sentinels"
        )
    if found < wanted:
        return Check(
            "replicas",
            "fail",
            f"{found} connected of FARM_REDIS__WAIT_REPLICAS={wanted}: new jobs are refused",
            "connect replicas, or lower it",
        )
    if not found:
        return Check("replicas", "warn", "none: a failover has nowhere to go", "connect one") if watched else None
    if watched and "min_slaves_good_slaves" not in info:
        return Check(
            "replicas",
            "warn",
            f"{found} connected; a master that is cut off from them goes on taking jobs, which are lost",
            "set min-replicas-to-write 1 and min-replicas-max-lag 10",
        )
    lost = "" if wanted else "; a failover may lose the last moment (FARM_REDIS__WAIT_REPLICAS=1 does not)"
    return Check("replicas", "ok", f"{found} connected{lost}")


def check_eviction(info: dict[str, Any]) -> Check:
    """Whether the server would rather refuse new jobs than throw old ones away."""
    policy, limit = str(info.get("maxmemory_policy", "noeviction")), int(info.get("maxmemory", 0))
    if policy == "noeviction":
        return Check("eviction", "ok", "noeviction: a full server refuses new jobs and loses none")
    if limit == 0:
        return Check(
            "eviction", "warn", f"{policy}, harmless until maxmemory is set", "set maxmemory-policy noeviction"
        )
    return Check(
        "eviction", "fail", f"{policy}: a full server throws accepted jobs away", "set maxmemory-policy noeviction"
    )


def check_memory(info: dict[str, Any]) -> Check:
    """How full the server is."""
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if limit == 0:
        return Check("memory", "ok", f"{size(used)} used, no limit")
    if used > FULL_SHARE * limit:
        return Check(
            "memory",
            "warn",
            f"{size(used)} of {size(limit)} used; when it is full, new jobs are refused",
            "raise maxmemory, or lower FARM_LIMITS__RETENTION_S",
        )
    return Check("memory", "ok", f"{size(used)} of {size(limit)} used")


def check_schema(ledger: int) -> Check:
    """Whether this version can read what the workers wrote."""
    if ledger <= schema.READS:
        return Check("schema", "ok", f"{ledger}; this version writes {schema.WRITES} and reads up to {schema.READS}")
    return Check(
        "schema",
        "fail",
        f"the ledger is of schema {ledger}, and this version reads up to {schema.READS}: its workers don't start",
        "install the version that wrote it, or a newer one",
    )


def check_clock(ahead_s: float) -> Check:
    """Whether this machine and the server agree on the time. Leases use the server's alone."""
    if abs(ahead_s) <= CLOCK_S:
        return Check("clock", "ok", f"within {max(0.1, abs(ahead_s)):.1f} s of the server's")
    word = "behind" if ahead_s > 0 else "ahead of"
    return Check(
        "clock",
        "warn",
        f"{abs(ahead_s):.0f} s {word} the server's; times shown here are off, jobs are not",
        "synchronise both clocks (NTP)",
    )


def _check_workers(settings: Settings) -> Check:
    jobs = Jobs(settings)
    try:
        seen = overview(jobs)
    except ServerUnreachable as error:
        return Check("workers", "fail", str(error), "look at the server's log")
    finally:
        jobs.client.close()
    name = model_name(settings.model.id)
    alive = [worker for worker in seen.workers if worker.is_alive and worker.model == name]
    if not alive:
        return Check("workers", "warn", f"none serves {name} now; jobs wait until one does", "farm worker starts one")
    slots = seen.live_slots(name)
    return Check("workers", "ok", f"{len(alive)} serve {name} with {slots} slots")


def _appendfsync(client: redis.Redis) -> str | None:
    """The setting, or None where CONFIG is not allowed, as at most providers."""
    try:
        return client.config_get("appendfsync").get("appendfsync")
    except redis.exceptions.ResponseError:
        return None
