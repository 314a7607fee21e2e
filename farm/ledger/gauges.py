"""What the ledger says of itself to those who measure it: one reading, in one round trip."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import redis

from farm.connection import our_errors
from farm.contracts import PRIORITIES
from farm.ledger.forecast import empty_in_s
from farm.ledger.jobs import Jobs

ALL = "(all)"
"""Stands for the sum of all tenants; no tenant's name holds a bracket."""
NAMED_TENANTS = 50
OTHERS = "(other)"
"""Stands for all tenants that are not named; no tenant's name holds a bracket."""


@dataclass(frozen=True, slots=True)
class ModelGauges:
    """One model. ``depth`` counts the jobs that wait by priority, ``age_s`` is how long the oldest of each has waited.

    in_state: jobs queued, dispatched and running. eta_s: until none waits: see forecast.empty_in_s.
    """

    name: str
    slots: int
    depth: dict[str, int]
    age_s: dict[str, float]
    in_state: dict[str, int]
    eta_s: float | None


@dataclass(frozen=True, slots=True)
class Gauges:
    """All of it. ``totals`` and ``tally`` count since the farm's beginning; see ``farm.keys``.

    workers: how many by (model, role, state). waiting_jobs, tokens_today: the largest by tenant, the rest as OTHERS.
    memory_bytes, memory_limit_bytes: of the server; None where it does not say.
    """

    models: list[ModelGauges]
    workers: dict[tuple[str, str, str], int]
    totals: Mapping[str, int]
    tally: Mapping[str, int]
    waiting_jobs: dict[str, int]
    tokens_today: dict[str, int]
    dead: int
    webhooks_waiting: int
    batches: dict[str, int]
    memory_bytes: int | None = field(default=None)
    memory_limit_bytes: int | None = field(default=None)


def read_gauges(jobs: Jobs) -> Gauges:
    """Read how the ledger stands. Raises ServerUnreachable."""
    live_ms = int(jobs.settings.keeper.liveness_s * 1000)
    seen = json.loads(jobs.scripts.call("gauges", live_ms, NAMED_TENANTS, jobs.settings.model.name))
    used, limit = _memory(jobs)
    spent = {tenant: int(tokens) for tenant, tokens in seen["spent"].items()}
    return Gauges(
        models=[_model(name, model) for name, model in sorted(seen["models"].items())],
        workers={_kind(line): count for line, count in seen["workers"].items()},
        totals=seen["totals"],
        tally=seen["tally"],
        waiting_jobs=_with_others(seen["waiting_jobs"], seen["waiting"]),
        tokens_today=_with_others(spent, spent.pop(ALL, 0)),
        dead=seen["dead"],
        webhooks_waiting=max(0, seen["hooks_waiting"]),
        batches=seen["batches"],
        memory_bytes=used,
        memory_limit_bytes=limit,
    )


def _memory(jobs: Jobs) -> tuple[int | None, int | None]:
    with our_errors(jobs.where):
        try:
            about = jobs.client.info("memory")
        except redis.exceptions.NoPermissionError:
            return None, None
    return int(about["used_memory"]), int(about["maxmemory"])


def _model(name: str, seen: Mapping[str, Mapping[str, float]]) -> ModelGauges:
    slots = int(seen["slots"])  # type: ignore[call-overload]
    in_state = {state: int(seen["counts"].get(state, 0)) for state in ("queued", "dispatched", "running")}
    depth: dict[str, int] = {level: max(0, int(seen["depth"].get(level, 0))) for level in PRIORITIES}
    return ModelGauges(
        name=name,
        slots=slots,
        depth=depth,
        age_s={level: max(0.0, seen["age_ms"].get(level, 0) / 1000) if depth[level] else 0.0 for level in PRIORITIES},
        in_state=in_state,
        eta_s=empty_in_s(in_state["queued"] + in_state["dispatched"], slots, seen["rate"]),
    )


def _kind(line: str) -> tuple[str, str, str]:
    model, role, state = line.split(" ")
    return model, role, state


def _with_others(named: Mapping[str, int], total: int) -> dict[str, int]:
    """The tenants named (no more than may be), and what is left of the total."""
    largest = dict(sorted(named.items(), key=lambda item: -item[1])[:NAMED_TENANTS])
    left = total - sum(largest.values())
    return {**largest, OTHERS: left} if left > 0 else largest
