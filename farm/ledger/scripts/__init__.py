"""The ledger's Lua scripts: loading and calling them. Each is atomic, and safe to run twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import resources
from typing import Any

import redis

from farm import keys
from farm.connection import is_transient, our_errors
from farm.errors import ServerUnreachable, SettingsError
from farm.settings import RedisSettings
from farm.time_limit import time_left, time_limit

# Only what accepts something new may be refused for lack of memory: whatever was accepted must be able to end.
FLAGS = {
    "submit": "",
    "file_add": "",
    "batch_add": "",
    "position": " flags=no-writes",
    "pieces": " flags=no-writes",
    "gauges": " flags=no-writes",
}
NAMES = (
    "submit",
    "dispatch",
    "claim",
    "progress",
    "finish",
    "release",
    "cancel",
    "register",
    "leave",
    "upkeep",
    "position",
    "mark",
    "pieces",
    "take",
    "forget",
    "webhook_take",
    "webhook_note",
    "webhook_rotate",
    "file_add",
    "file_drop",
    "batch_add",
    "batch_take",
    "batch_keep",
    "batch_cancel",
    "batch_end",
    "revive",
    "purge",
    "tidy",
    "gauges",
)
SHARED = ("base", "queues", "moves", "kept", "ends", "losses")
"""The parts of ``shared/``, each of which uses those before it; all of them stand before every script."""

Arguments = tuple[str | int | float, ...]


@cache
def source(name: str) -> str:
    """A script as the server gets it: flags, the shared parts, its own part."""
    return f"#!lua{FLAGS.get(name, ' flags=allow-oom')}\n{shared()}\n{text_of(name)}"


@cache
def shared() -> str:
    """What stands before every script."""
    return "\n".join(text_of(f"shared/{part}") for part in SHARED)


def text_of(name: str) -> str:
    """A file of this folder, without its ending."""
    return (resources.files(__name__) / f"{name}.lua").read_text(encoding="utf-8")


def sha(name: str) -> str:
    """What the server calls a script."""
    return hashlib.sha1(source(name).encode(), usedforsecurity=False).hexdigest()


class Scripts:
    """Calls the scripts on one server."""

    def __init__(self, client: redis.Redis, where: str, settings: RedisSettings) -> None:
        self.client = client
        self.where = where
        self._limit_s = settings.timeout_s
        self._is_fsync = settings.durability == "fsync"
        self._replicas = settings.wait_replicas
        self._sources = {name: source(name) for name in NAMES}
        self._shas = {name: sha(name) for name in NAMES}

    def call(self, name: str, *args: str | int | float, durable_ms: int | None = None) -> Any:
        """Run a script. A server that does not know it is told.

        durable_ms: how long to wait until what the script wrote is where the settings want it: in the server's
        append-only file on disk, at replicas, or both.
        Raises ServerUnreachable (the script may have run all the same), ServerFull, SettingsError when the server can't
        say what is on disk.
        """
        with our_errors(self.where), time_limit(self._limit_s):
            run = self._run if durable_ms is None else partial(self._run_durably, durable_ms)
            try:
                try:
                    return run("EVALSHA", self._shas, name, args)
                except redis.exceptions.NoScriptError:
                    # In one go: a server that is told first may have died before it is asked.
                    return run("EVAL", self._sources, name, args)
            except redis.exceptions.ReadOnlyError:
                # A master that was demoted keeps its connections; new ones may find its successor.
                self.client.connection_pool.disconnect(inuse_connections=False)
                raise

    def _run(self, how: str, texts: Mapping[str, str], name: str, args: Arguments) -> Any:
        ask: Callable[..., Any] = self.client.execute_command
        return ask(how, texts[name], 1, keys.PREFIX, *args)

    def _run_durably(self, durable_ms: int, how: str, texts: Mapping[str, str], name: str, args: Arguments) -> Any:
        # A server that had to be told the script has waited once already.
        left_ms = int(500 * (time_left() or self._limit_s))
        share_ms = max(1, min(durable_ms, left_ms) // (self._is_fsync + bool(self._replicas)))
        # In one pipeline, since WAITAOF and WAIT speak of what their own connection wrote. A repetition writes nothing,
        # and on a new connection they would confirm that at once: the mark is written after all that it stands for.
        with self.client.pipeline(transaction=False) as pipe:
            ask: Callable[..., Any] = pipe.execute_command
            ask(how, texts[name], 1, keys.PREFIX, *args)
            ask(how, texts["mark"], 1, keys.PREFIX)
            if self._is_fsync:
                ask("WAITAOF", 1, 0, share_ms)
            if self._replicas:
                ask("WAIT", self._replicas, share_ms)
            answer, marked, *confirmed = pipe.execute(raise_on_error=False)
        for said in (answer, marked):
            if isinstance(said, Exception):
                raise said
        if self._is_fsync:
            self._check_disk(confirmed.pop(0), share_ms)
        if self._replicas:
            self._check_replicas(confirmed.pop(0), share_ms)
        return answer

    def _check_disk(self, said: Any, share_ms: int) -> None:
        demoted = isinstance(said, redis.exceptions.ResponseError) and "replica instances" in str(said)
        if isinstance(said, redis.exceptions.ResponseError) and not demoted and not is_transient(said):
            raise SettingsError(
                f"FARM_REDIS__DURABILITY=fsync: the server at {self.where} can't confirm writes ({said}); "
                "it needs appendonly yes and Redis 7.2 or Valkey"
            )
        if isinstance(said, Exception) and not demoted:
            raise said
        if demoted or said[0] < 1:
            raise ServerUnreachable(f"Redis at {self.where} did not confirm within {share_ms} ms that it is on disk")

    def _check_replicas(self, said: Any, share_ms: int) -> None:
        if isinstance(said, redis.exceptions.ResponseError):
            raise ServerUnreachable(f"Redis at {self.where} can't wait for replicas now ({said}); try again") from None
        if isinstance(said, Exception):
            raise said
        if said < self._replicas:
            # One of them may be the master now.
            self.client.connection_pool.disconnect(inuse_connections=False)
            raise ServerUnreachable(
                f"{said} of {self._replicas} replicas of Redis at {self.where} confirmed within {share_ms} ms; "
                "try again, bring replicas back, or lower FARM_REDIS__WAIT_REPLICAS"
            )
