"""The numbers of a run, worked out from its history. Pure."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.check import DUPLICATES
from tests.chaos.evidence import Evidence, Violation
from tests.chaos.record import Begun, Call, Gone, Struck
from tests.integration.ledger.farmhand import ENDED

ROUNDING_S = 0.001


@dataclass(frozen=True, slots=True)
class Figures:
    """What a run came to. Times in seconds; None where nothing of the kind happened.

    ``recovery``: from a fault that took a worker or an engine away until a job that it held was claimed again.
    ``resumed`` counts jobs that succeeded after more than one attempt. ``repeated`` is the share of tokens that engines
    made and the ledger never got.
    """

    seconds: float
    acknowledged: int
    succeeded: int
    dead: int
    lost: int
    duplicated: int
    faults: dict[str, int]
    attempts: int
    resumed: int
    tokens: int
    repeated: float | None
    worst_overrun_s: float | None
    worker_recovery_p99_s: float | None
    worker_recoveries: int
    engine_recovery_p99_s: float | None
    engine_recoveries: int
    load_s: float
    slowest_drain_s: float | None


def figures(told: Evidence, violations: Sequence[Violation]) -> Figures:
    """The numbers of a run and of what was found in it."""
    jobs = told.jobs.values()
    states = Counter(job.state for job in jobs)
    rules = Counter(violation.rule for violation in violations)
    calls = [call for call in told.history.of(Call) if call.limit_s is not None]
    tokens = sum(len(job.entries) for job in jobs)
    made = told.census.made
    workers = _recoveries(told, "lose-worker", ("lease_ended",))
    engines = _recoveries(told, "kill-engine", ("engine_died",))
    drains = [gone.took_s for gone in told.history.of(Gone) if gone.wanted == "terminate"]
    return Figures(
        seconds=max((event.t for event in told.history.events if not isinstance(event, Begun)), default=0.0),
        acknowledged=len(told.history.acknowledged),
        succeeded=states["succeeded"],
        dead=states["dead"],
        lost=rules["lost"],
        duplicated=sum(rules[rule] for rule in DUPLICATES),
        faults=dict(Counter(struck.fault.kind for struck in told.history.of(Struck))),
        attempts=sum(int(job.fields.get("attempt", 0)) for job in jobs if job.state in ENDED),
        resumed=sum(job.state == "succeeded" and int(job.fields["attempt"]) > 1 for job in jobs),
        tokens=tokens,
        repeated=(made - tokens) / made if made else None,
        worst_overrun_s=max((call.took_s - (call.limit_s or 0.0) for call in calls), default=None),
        worker_recovery_p99_s=percentile(workers, 0.99),
        worker_recoveries=len(workers),
        engine_recovery_p99_s=percentile(engines, 0.99),
        engine_recoveries=len(engines),
        load_s=told.census.load_s,
        slowest_drain_s=max(drains, default=None),
    )


def _recoveries(told: Evidence, kind: str, reasons: Sequence[str]) -> list[float]:
    """For each job that a fault of a kind took from its worker: seconds until its next attempt began."""
    found = []
    wall = told.history.wall
    for struck in told.history.of(Struck):
        if struck.fault.kind != kind or not struck.worker:
            continue
        at = wall + struck.t
        for job_id in struck.held:
            attempts = told.jobs[job_id].attempts if job_id in told.jobs else []
            for one, other in itertools.pairwise(attempts):
                is_its_loss = one.worker == struck.worker and one.reason in reasons
                if is_its_loss and one.started_at <= at <= one.ended_at + ROUNDING_S:
                    found.append(other.started_at - at)
    return found


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that so large a share of them does not exceed; None of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None
