"""The farm at one moment: jobs by model and priority, workers, totals. Reads only, in three round trips."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from farm import keys
from farm.connection import our_errors
from farm.contracts import PRIORITIES
from farm.ledger.forecast import empty_in_s
from farm.ledger.jobs import Jobs


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """Jobs of one model. ``queued`` is by priority, ``delayed`` wait for a retry, ``dispatched`` are messages.

    eta_s: until none waits: see forecast.empty_in_s.
    """

    model: str
    queued: dict[str, int]
    delayed: int
    dispatched: int
    running: int
    slots: int
    per_s: float
    eta_s: float | None

    @property
    def waiting(self) -> int:
        """Jobs that wait for their turn or for a worker to take them."""
        return sum(self.queued.values()) + self.delayed + self.dispatched


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker. ``held`` counts the jobs it runs; ``tokens`` those that it has written since it started; ``silent_s``
    is how long ago it last spoke; ``trouble`` says why it takes no jobs, and is empty while it does."""

    id: str
    name: str
    role: str
    model: str
    slots: int
    held: int
    tokens: int
    is_draining: bool
    is_alive: bool
    trouble: str
    silent_s: float
    up_s: float


@dataclass(frozen=True, slots=True)
class Overview:
    """All of it. ``totals`` count since the farm's beginning."""

    models: list[ModelLoad]
    workers: list[WorkerView]
    totals: dict[str, int]

    @property
    def released(self) -> dict[str, int]:
        """How often jobs were put back into the queue after an attempt, by reason."""
        prefix = "released:"
        return {
            name.removeprefix(prefix): count for name, count in sorted(self.totals.items()) if name.startswith(prefix)
        }

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def live_slots(self, model: str) -> int:
        """How many jobs of a model can run now."""
        return sum(load.slots for load in self.models if load.model == model)


def overview(jobs: Jobs) -> Overview:
    """Read how the farm stands. Raises ServerUnreachable."""
    with our_errors(jobs.where), jobs.client.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.zrange(keys.WORKERS, 0, -1, withscores=True)
        pipe.hkeys(keys.MODELS)
        pipe.hgetall(keys.TOTALS)
        clock, beats, known, totals = pipe.execute()
    now_ms = clock[0] * 1000 + clock[1] // 1000
    workers = _workers(jobs, beats, now_ms)
    names = sorted({*known, jobs.settings.model.name, *(worker.model for worker in workers if worker.model)})
    return Overview(_loads(jobs, names, workers, now_ms), workers, {name: int(count) for name, count in totals.items()})


def _workers(jobs: Jobs, beats: list[tuple[str, float]], now_ms: int) -> list[WorkerView]:
    with our_errors(jobs.where), jobs.client.pipeline(transaction=False) as pipe:
        for worker, _ in beats:
            pipe.hgetall(keys.worker(worker))
            pipe.scard(keys.held(worker))
        answers = pipe.execute()
    alive_ms = jobs.settings.keeper.liveness_s * 1000
    views = [
        WorkerView(
            id=worker,
            name=about.get("name", worker),
            role=about.get("role", "model"),
            model=about.get("model", ""),
            slots=int(about.get("capacity", 0)),
            held=held,
            tokens=int(about.get("tokens", 0)),
            is_draining=about.get("draining") == "1",
            is_alive=now_ms - beat <= alive_ms,
            trouble=about.get("trouble", ""),
            silent_s=max(0.0, round((now_ms - beat) / 1000, 1)),
            up_s=max(0.0, round((now_ms - int(about.get("since", now_ms))) / 1000, 1)),
        )
        for (worker, beat), about, held in zip(beats, answers[::2], answers[1::2], strict=True)
        if about
    ]
    return sorted(views, key=lambda view: (view.role, view.name))


def _loads(jobs: Jobs, names: list[str], workers: list[WorkerView], now_ms: int) -> list[ModelLoad]:
    lanes = [(name, priority) for name in names for priority in PRIORITIES]
    with our_errors(jobs.where), jobs.client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hgetall(keys.counts(name))
            pipe.hgetall(keys.rate(name))
        for lane in lanes:
            pipe.zrange(keys.lanes(*lane), 0, -1)
        answers = pipe.execute()
        tenants = dict(zip(lanes, answers[2 * len(names) :], strict=True))
        for (name, priority), members in tenants.items():
            for tenant in members:
                pipe.zcard(keys.queue(name, priority, tenant))
        sizes = iter(pipe.execute())
    depth = {lane: sum(next(sizes) for _ in members) for lane, members in tenants.items()}
    loads = []
    for name, counts, rate in zip(names, answers[: 2 * len(names) : 2], answers[1 : 2 * len(names) : 2], strict=True):
        queued: dict[str, int] = {priority: depth[name, priority] for priority in PRIORITIES}
        slots = sum(w.slots for w in workers if w.model == name and w.is_alive and not w.is_draining)
        waiting = int(counts.get("queued", 0)) + int(counts.get("dispatched", 0))
        loads.append(
            ModelLoad(
                model=name,
                queued=queued,
                delayed=max(0, int(counts.get("queued", 0)) - sum(queued.values())),
                dispatched=int(counts.get("dispatched", 0)),
                running=int(counts.get("running", 0)),
                slots=slots,
                per_s=_decayed(rate, now_ms),
                eta_s=empty_in_s(waiting, slots, rate),
            )
        )
    return loads


def _decayed(rate: dict[str, str], now_ms: int) -> float:
    """Jobs that ended per second of late; the ledger writes it only when one ends, so it fades in between."""
    age_s = (now_ms - int(rate.get("at", now_ms))) / 1000
    return round(float(rate.get("per_s", 0)) * math.exp(-age_s / 30), 3)
