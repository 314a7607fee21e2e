"""The farm as a queue and workers that share their pace among the jobs in their slots. Simulated event by event.

A worker generates ``full`` tokens a second in all, and no job more than ``alone``. Jobs go to workers in order; one
whose worker is taken away goes back to its place with the tokens that it has.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from dataclasses import dataclass, field

from benchmarks.autoscale.day import Job
from benchmarks.autoscale.policy import SYNC_S, Pool

SLOTS = 32
WINDOW_S = 600.0  # of the query for the seconds that a job holds a slot
UNKNOWN_S = 20.0  # what the query takes for it before any job has ended


@dataclass(frozen=True)
class Pace:
    """Tokens per second of a worker, in all and for one job; and seconds until a new worker is ready."""

    full: float
    alone: float
    start_s: float


@dataclass(eq=False)
class Worker:
    """One worker. ``served`` grows by a job's pace, so that a job ends when it reaches its mark."""

    pool: str
    made_s: float
    is_ready: bool = False
    is_gone: bool = False
    served: float = 0.0
    at_s: float = 0.0
    version: int = 0
    marks: list[tuple[float, int, Job]] = field(default_factory=list)


class Farm:
    """A day of jobs, run through pools of workers."""

    def __init__(self, jobs: list[Job], pace: Pace, pools: list[Pool], replicas: dict[str, int]) -> None:
        self.jobs, self.pace, self.pools = jobs, pace, pools
        self.now_s = 0.0
        self.waiting: list[tuple[int, Job]] = []
        self.workers: dict[str, list[Worker]] = {name: [] for name in replicas}
        self.worker_s = 0.0
        self.handed_over = 0
        self.ended: deque[tuple[float, float]] = deque()
        self.ended_held_s = 0.0
        self.history: list[tuple[float, int, int]] = []
        self._events: list[tuple[float, int, str, object]] = []
        self._order = itertools.count()
        for name, count in replicas.items():
            for _ in range(count):
                self._add(name, ready=True)

    def run(self, until_s: float) -> None:
        """Run the day, and on until all jobs have ended."""
        for job in self.jobs:
            self._at(job.came_s, "job", job)
        for pool in self.pools:
            self._at(0.0, "poll", pool)
            self._at(0.0, "sync", pool)
        self._at(0.0, "note", None)
        left = len(self.jobs)
        while self._events and (left or self.now_s < until_s):
            self.now_s, _, kind, what = heapq.heappop(self._events)
            if kind == "job":
                assert isinstance(what, Job)
                heapq.heappush(self.waiting, (what.number, what))
                self._serve()
            elif kind == "turn":
                left -= self._turn(what)  # type: ignore[arg-type]
            elif kind == "ready":
                assert isinstance(what, Worker)
                what.is_ready, what.at_s = not what.is_gone, self.now_s
                self._serve()
            elif kind == "note":
                count = sum(len(workers) for workers in self.workers.values())
                self.history.append((self.now_s, count, len(self.waiting)))
                self._at(self.now_s + 60, "note", None)
            else:
                assert isinstance(what, Pool)
                self._steer(kind, what)
        for workers in self.workers.values():
            self.worker_s += sum(self.now_s - worker.made_s for worker in workers)

    def _at(self, at_s: float, kind: str, what: object) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), kind, what))

    # Workers

    def _add(self, pool: str, *, ready: bool = False) -> None:
        worker = Worker(pool, self.now_s, is_ready=ready, at_s=self.now_s)
        self.workers[pool].append(worker)
        if not ready:
            self._at(self.now_s + self.pace.start_s, "ready", worker)

    def _remove(self, pool: str) -> None:
        """Take the youngest worker away; one that is not ready goes first, as in Kubernetes."""
        worker = max(self.workers[pool], key=lambda one: (not one.is_ready, one.made_s))
        self._settle(worker)
        self.workers[pool].remove(worker)
        worker.is_gone, worker.is_ready = True, False
        worker.version += 1
        self.worker_s += self.now_s - worker.made_s
        for mark, _, job in worker.marks:
            job.left = max(0.001, mark - worker.served)
            self.handed_over += 1
            heapq.heappush(self.waiting, (job.number, job))
        worker.marks = []
        self._serve()

    def _settle(self, worker: Worker) -> None:
        """Bring what a worker has served up to now."""
        if worker.marks:
            worker.served += (self.now_s - worker.at_s) * self._per_job(worker)
        worker.at_s = self.now_s

    def _per_job(self, worker: Worker) -> float:
        return min(self.pace.alone, self.pace.full / max(1, len(worker.marks)))

    def _plan(self, worker: Worker) -> None:
        """Have the next end of one of its jobs come."""
        worker.version += 1
        if worker.marks:
            wait_s = (worker.marks[0][0] - worker.served) / self._per_job(worker)
            self._at(self.now_s + max(0.0, wait_s), "turn", (worker, worker.version))

    def _turn(self, what: tuple[Worker, int]) -> int:
        """Jobs of a worker end; returns how many."""
        worker, version = what
        if worker.version != version:
            return 0
        self._settle(worker)
        count = 0
        while worker.marks and worker.marks[0][0] <= worker.served + 1e-6:
            job = heapq.heappop(worker.marks)[2]
            job.ended_s = self.now_s
            assert job.started_s is not None
            self.ended.append((self.now_s, self.now_s - job.started_s))
            self.ended_held_s += self.now_s - job.started_s
            count += 1
        self._plan(worker)
        self._serve()
        return count

    def _serve(self) -> None:
        """Give waiting jobs to workers with room, to the one with the most first."""
        if not self.waiting:
            return
        ready = [worker for workers in self.workers.values() for worker in workers if worker.is_ready]
        touched: dict[int, Worker] = {}
        while self.waiting and ready:
            worker = min(ready, key=lambda one: len(one.marks))
            if len(worker.marks) >= SLOTS:
                break
            self._settle(worker)
            number, job = heapq.heappop(self.waiting)
            job.started_s = self.now_s if job.started_s is None else job.started_s
            heapq.heappush(worker.marks, (worker.served + job.left, number, job))
            touched[id(worker)] = worker
        for worker in touched.values():
            self._plan(worker)

    # What the pools see and do

    def _steer(self, kind: str, pool: Pool) -> None:
        workers = self.workers[pool.name]
        seen = self._seen()
        if kind == "poll":
            wanted = pool.wake(self.now_s, seen, len(workers))
            self._at(self.now_s + pool.poll_s, "poll", pool)
        else:
            wanted = pool.sync(self.now_s, seen, len(workers), sum(worker.is_ready for worker in workers))
            self._at(self.now_s + SYNC_S, "sync", pool)
        for _ in range(wanted - len(workers)):
            self._add(pool.name)
        for _ in range(len(workers) - wanted):
            self._remove(pool.name)

    def _seen(self) -> dict[str, float]:
        """The triggers' queries, by name."""
        while self.ended and self.ended[0][0] < self.now_s - WINDOW_S:
            self.ended_held_s -= self.ended.popleft()[1]
        held_s = self.ended_held_s / len(self.ended) if self.ended else UNKNOWN_S
        running = sum(len(worker.marks) for workers in self.workers.values() for worker in workers)
        oldest = self.now_s - self.waiting[0][1].came_s if self.waiting else 0.0
        return {"demand": len(self.waiting) * held_s / (SLOTS * 60) + running / SLOTS, "oldest": oldest}
