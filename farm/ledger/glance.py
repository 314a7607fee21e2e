"""The farm at one moment and of late: the overview, the jobs that ended last, tokens; and paces between two.

Reads only. Counters of workers go up as tokens are written, so a pace needs two readings.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from farm import keys
from farm.connection import our_errors
from farm.ledger.gauges import ALL
from farm.ledger.jobs import Jobs
from farm.ledger.overview import Overview, overview

WINDOW_S = 5.0
_FIELDS = ("state", "model", "priority", "tenant", "worker", "created", "started", "finished")


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that has ended. ``queued_s`` until a worker took it first, ``run_s`` from then to its end."""

    id: str
    state: str
    model: str
    priority: str
    tenant: str
    tokens: int
    queued_s: float | None
    run_s: float | None
    worker: str | None
    finished_at: float


@dataclass(frozen=True, slots=True)
class Glance:
    """One reading, at a time of the server's clock. The latest job to end comes first.

    tokens_today: of prompts and completions of the jobs that ended on this day, UTC. resumed_tokens: kept over a
    worker's death and not computed again, since the farm's beginning.
    """

    at: float
    farm: Overview
    dead: int
    recent: list[Ended]
    tokens_today: int = 0
    resumed_tokens: int = 0

    @property
    def waiting(self) -> int:
        """Jobs that wait for their turn or for a worker to take them."""
        return sum(load.waiting for load in self.farm.models)

    @property
    def ended(self) -> int:
        """Jobs that have ended since the farm's beginning."""
        return sum(self.farm.totals.get(name, 0) for name in ("succeeded", "failed", "cancelled", "expired", "dead"))


def glance(jobs: Jobs, recent: int = 10) -> Glance:
    """Read how the farm stands, with so many of the jobs that ended last. Raises ServerUnreachable."""
    seen = overview(jobs)
    with our_errors(jobs.where), jobs.client.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.zcard(keys.DEAD)
        pipe.hgetall(keys.TALLY)
        clock, dead, tally = pipe.execute()
        pipe.zscore(keys.spent(datetime.fromtimestamp(clock[0], UTC).date().isoformat()), ALL)
        ids = _latest(jobs, recent)
        for job_id in ids:
            pipe.hmget(keys.job(job_id), *_FIELDS)
            pipe.llen(keys.out(job_id))
        spent, *answers = pipe.execute()
    names = {worker.id: worker.name for worker in seen.workers}
    ended = [
        _ended(job_id, dict(zip(_FIELDS, values, strict=True)), tokens, names)
        for job_id, values, tokens in zip(ids, answers[::2], answers[1::2], strict=True)
        if values[-1]
    ]
    resumed = sum(int(tokens) for what, tokens in tally.items() if what.startswith("resumed:"))
    return Glance(clock[0] + clock[1] / 1e6, seen, dead, ended, int(spent or 0), resumed)


class Paces:
    """Tokens and jobs per second over the readings of the last five seconds."""

    def __init__(self) -> None:
        self._seen: deque[Glance] = deque()

    def see(self, latest: Glance) -> None:
        """Take a reading."""
        if self._seen and latest.at <= self._seen[-1].at:
            self._seen.clear()  # another server, or its clock was set back
        self._seen.append(latest)
        while len(self._seen) > 2 and self._seen[1].at <= latest.at - WINDOW_S:
            self._seen.popleft()

    @property
    def workers(self) -> dict[str, float]:
        """Tokens per second by worker's id. Empty before the second reading."""
        if len(self._seen) < 2:
            return {}
        # A worker that was not there has counted from 0 since.
        before = {worker.id: worker.tokens for worker in self._seen[0].farm.workers}
        return {
            worker.id: max(0, worker.tokens - before.get(worker.id, 0)) / self._took_s
            for worker in self._seen[-1].farm.workers
        }

    @property
    def tokens_per_s(self) -> float:
        return sum(self.workers.values())

    @property
    def jobs_per_s(self) -> float:
        if len(self._seen) < 2:
            return 0.0
        return max(0, self._seen[-1].ended - self._seen[0].ended) / self._took_s

    @property
    def _took_s(self) -> float:
        return max(1e-3, self._seen[-1].at - self._seen[0].at)


def to_dict(seen: Glance, paces: Paces) -> dict[str, Any]:
    """As JSON for programs."""
    farm = seen.farm.to_dict()
    for worker in farm["workers"]:
        worker["tokens_per_s"] = round(paces.workers.get(worker["id"], 0.0), 1)
    return {
        "at": round(seen.at, 3),
        "tokens_per_s": round(paces.tokens_per_s, 1),
        "jobs_per_s": round(paces.jobs_per_s, 2),
        "waiting": seen.waiting,
        **farm,
        "released": seen.farm.released,
        "dead": seen.dead,
        "tokens_today": seen.tokens_today,
        "resumed_tokens": seen.resumed_tokens,
        "recent": [asdict(job) for job in seen.recent],
    }


def _latest(jobs: Jobs, count: int) -> list[str]:
    """The jobs that ended last, of all tenants. Theirs are the tenants whose newest are newest."""
    if count < 1:
        return []
    with jobs.client.pipeline(transaction=False) as pipe:
        for tenant in jobs.client.zrevrange(keys.KEPT_NEWEST, 0, count - 1):
            pipe.zrevrange(keys.kept(str(tenant)), 0, count - 1, withscores=True)
        found = [(ended, member) for members in pipe.execute() for member, ended in members]
    return [member.split("|", 1)[0] for _, member in sorted(found, reverse=True)[:count]]


def _ended(job_id: str, fields: dict[str, str | None], tokens: int, names: dict[str, str]) -> Ended:
    created, started, finished = (int(fields[name] or 0) / 1000 for name in ("created", "started", "finished"))
    worker = fields["worker"]
    return Ended(
        id=job_id,
        state=fields["state"] or "",
        model=fields["model"] or "",
        priority=fields["priority"] or "",
        tenant=fields["tenant"] or "",
        tokens=tokens,
        queued_s=round(started - created, 3) if started else None,
        run_s=round(finished - started, 3) if started else None,
        # A worker's id is its name and what tells this life of it from others.
        worker=names.get(worker, worker.rpartition(".")[0] or worker) if worker else None,
        finished_at=finished,
    )
