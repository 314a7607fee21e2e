"""The ledger's Lua scripts: loading and calling them. Each is atomic, and safe to run twice."""

from __future__ import annotations

from importlib import resources
from typing import Any

import redis

from farm import keys
from farm.connection import our_errors
from farm.errors import ServerUnreachable, SettingsError

# Only submit may be refused for lack of memory: whatever was accepted must be able to end.
FLAGS = {"submit": "", "position": " flags=no-writes"}
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
    "revive",
    "purge",
    "tidy",
)


def source(name: str) -> str:
    """A script as the server gets it: flags, the shared part, its own part."""
    folder = resources.files(__name__)
    common = (folder / "common.lua").read_text(encoding="utf-8")
    own = (folder / f"{name}.lua").read_text(encoding="utf-8")
    return f"#!lua{FLAGS.get(name, ' flags=allow-oom')}\n{common}\n{own}"


class Scripts:
    """Calls the scripts on one server."""

    def __init__(self, client: redis.Redis, where: str) -> None:
        self.client = client
        self.where = where
        self._scripts = {name: client.register_script(source(name)) for name in NAMES}

    def call(self, name: str, *args: str | int | float, durable_ms: int | None = None) -> Any:
        """Run a script. A server that forgot it is told again.

        durable_ms: how long to wait until what the script wrote is in the server's append-only file on disk.
        Raises ServerUnreachable (the script may have run all the same), ServerFull, SettingsError when the server can't
        say what is on disk.
        """
        with our_errors(self.where):
            try:
                if durable_ms is None:
                    return self._scripts[name](keys=[keys.PREFIX], args=list(args))
                return self._call_durably(name, args, durable_ms)
            except redis.exceptions.ReadOnlyError:
                # A master that was demoted keeps its connections; new ones may find its successor.
                self.client.connection_pool.disconnect(inuse_connections=False)
                raise

    def _call_durably(self, name: str, args: tuple[str | int | float, ...], durable_ms: int) -> Any:
        # In one pipeline, since WAITAOF speaks of what its own connection wrote.
        with self.client.pipeline(transaction=False) as pipe:
            self._scripts[name](keys=[keys.PREFIX], args=list(args), client=pipe)
            pipe.waitaof(1, 0, durable_ms)
            answer, on_disk = pipe.execute(raise_on_error=False)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(on_disk, redis.exceptions.ResponseError):
            raise SettingsError(
                f"FARM_REDIS__DURABILITY=fsync: the server at {self.where} can't confirm writes ({on_disk}); "
                "it needs appendonly yes and Redis 7.2 or Valkey"
            )
        if isinstance(on_disk, Exception):
            raise on_disk
        if on_disk[0] < 1:
            raise ServerUnreachable(f"Redis at {self.where} did not confirm within {durable_ms} ms that it is on disk")
        return answer
