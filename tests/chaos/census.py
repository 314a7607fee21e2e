"""What is left when all is over: the ledger's keys, what workers say that they finished, and what did not go away."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import redis

from farm import keys
from farm.ledger.jobs import Jobs
from farm.ledger.upkeep import Upkeep
from farm.settings import Settings
from tests.conftest import wait_until
from tests.integration.ledger.farmhand import Field

# What a farm without jobs and workers keeps: its clocks, its sums, and what people set.
CLOCKS = ("vtime", "vclock", "beat", "grace", "leader", "seq", "mark", "wake", "events", "full")
SUMS = ("totals", "tally", "rate", "models", "schema", "usage", "used", "usage_days", "spent")
SET = ("weights", "limits", "keys", "keys_used")
LASTING = frozenset((*CLOCKS, *SUMS, *SET))
EMPTY = frozenset(("counts", "depth", "waiting", "kept_all", "finished_bytes", "hooks_waiting"))  # stay, and must be 0
PASSING = frozenset(("worker", "pace", "dropped", "place"))  # go by themselves: a successor's note, a bucket, a place
DECLARED = frozenset(key.name.split(":")[0] for key in keys.KEYS)


@dataclass(frozen=True, slots=True)
class Said:
    """A worker's log line about one attempt: how it ended as far as the worker was told."""

    worker: str
    job: str
    attempt: int
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Census:
    """The ledger when all jobs had ended (``world``: keys and what they held), and what came after.

    ``leaked`` are keys that stayed after every worker had left and every retention had passed. ``late`` are workers
    that did not drain in time, ``orphans`` the pids of engines without workers. ``made`` counts the tokens that all
    engines made; None if nobody counted. ``load_s`` is the longest that an engine took to load its model.
    """

    world: dict[str, Any]
    said: list[Said] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    orphans: list[int] = field(default_factory=list)
    made: int | None = None
    load_s: float = 0.0

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), default=sorted), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Census:
        body = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**body, "said": [Said(**line) for line in body["said"]]})


def world(settings: Settings) -> dict[str, Any]:
    """All of the ledger's keys but its events."""
    jobs = Jobs(settings)
    try:
        return Field(jobs).dump(but=("events",))
    finally:
        jobs.client.close()


def said(folder: Path) -> list[Said]:
    """What workers logged of the ends of their attempts."""
    return [
        Said(worker, line["job"], line["attempt"], line["state"] or "", line["reason"])
        for worker, line in _lines(folder, "job")
    ]


def load_s(folder: Path) -> float:
    """The longest that an engine took to load its model, as workers logged it."""
    return max((line["load_s"] for _, line in _lines(folder, "engine_ready")), default=0.0)


def _lines(folder: Path, event: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Workers' log lines of one kind, with the worker's name."""
    for path in sorted(folder.glob("*.log")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if f'"event": "{event}"' in line:
                with contextlib.suppress(ValueError):  # the last line of one that was killed
                    yield path.stem, json.loads(line)


def leaked(settings: Settings) -> list[str]:
    """Let every retention pass now, and say which keys stay that should not. All workers have left by then.

    settings: with a lease and a retention of moments.
    """
    jobs = Jobs(settings)
    keeper = Upkeep(jobs)
    found: list[str] = []

    def is_clean() -> bool:
        nonlocal found
        keeper.keep()
        found = sorted(key for key in jobs.client.scan_iter(count=10_000) if _has_leaked(jobs.client, key))
        return not found

    try:
        wait_until(is_clean, why="retention", timeout_s=20)
    except AssertionError:
        return found
    finally:
        jobs.client.close()
    return []


def _has_leaked(client: redis.Redis, key: str) -> bool:
    if not key.startswith(keys.PREFIX):
        return key.startswith("celery-task-meta-")  # nobody asked Celery for a result
    family = key.removeprefix(keys.PREFIX).split(":")[0]
    if family not in DECLARED:
        return True
    if family in EMPTY:
        values = client.hvals(key) if client.type(key) == "hash" else [client.get(key)]
        return any(value != "0" for value in values)
    if family in PASSING:
        return int(client.pttl(key)) < 0
    return family not in LASTING
