"""A bursty day: when jobs come, and how many tokens each is."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
BURSTS, BURST_S, BURST_TIMES = 6, 600.0, 3.0
NIGHT_BATCH_AT_S, NIGHT_BATCH = 2.5 * HOUR_S, 3_000
OPEN_FROM_S, OPEN_UNTIL_S = 6 * HOUR_S, 23 * HOUR_S


@dataclass(slots=True)
class Job:
    """One job. ``left``: tokens still to generate; ``started_s`` when a worker first took it."""

    number: int
    came_s: float
    tokens: int
    left: float
    started_s: float | None = None
    ended_s: float | None = None


def day(peak_per_s: float, seed: int) -> list[Job]:
    """Jobs by when they come: a closed night but for one batch, a day that swells to its afternoon, bursts on top.

    peak_per_s: jobs per second in the afternoon, bursts apart.  Lengths are those of benchmarks.workload.
    """
    draw = random.Random(seed)
    bursts = [draw.uniform(OPEN_FROM_S, OPEN_UNTIL_S - BURST_S) for _ in range(BURSTS)]
    jobs: list[Job] = []

    def add(at_s: float) -> None:
        tokens = min(256, max(4, round(draw.lognormvariate(3.5, 1.0))))
        jobs.append(Job(len(jobs), at_s, tokens, float(tokens)))

    for _ in range(NIGHT_BATCH):
        add(NIGHT_BATCH_AT_S)
    at_s, fastest = OPEN_FROM_S, peak_per_s * BURST_TIMES
    while (at_s := at_s + draw.expovariate(fastest)) < OPEN_UNTIL_S:
        if draw.random() < rate(at_s, peak_per_s, bursts) / fastest:
            add(at_s)
    return jobs


def rate(at_s: float, peak_per_s: float, bursts: list[float]) -> float:
    """Jobs per second at a time of the day."""
    swell = math.sin(math.pi * (at_s - OPEN_FROM_S) / (OPEN_UNTIL_S - OPEN_FROM_S)) ** 2
    base = peak_per_s * (0.1 + 0.9 * swell)
    return base * (BURST_TIMES if any(start <= at_s < start + BURST_S for start in bursts) else 1.0)
