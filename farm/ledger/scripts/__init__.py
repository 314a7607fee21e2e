"""The ledger's Lua scripts: loading and calling them. Each is atomic, and safe to run twice."""

from __future__ import annotations

from importlib import resources
from typing import Any

import redis

from farm import keys
from farm.connection import our_errors

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

    def call(self, name: str, *args: str | int | float) -> Any:
        """Run a script. A server that forgot it is told again. Raises ServerUnreachable, ServerFull."""
        with our_errors(self.where):
            try:
                return self._scripts[name](keys=[keys.PREFIX], args=list(args))
            except redis.exceptions.ReadOnlyError:
                # A master that was demoted keeps its connections; new ones may find its successor.
                self.client.connection_pool.disconnect(inuse_connections=False)
                raise
