"""Fault schedules of the ledger alone: its scripts on a real server, in one thread, in any order.

Producers, three workers, two keepers and a broker that loses and doubles messages take steps in an order drawn from a
seed; replies are lost, workers crash, sleep and are overtaken, time jumps, the server forgets its scripts. What must
hold of the ledger is checked after every step, and at the end everything that was accepted has ended.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import hypothesis
from hypothesis.stateful import run_state_machine_as_test

from farm.ledger.jobs import Jobs
from farm.local.server import EmbeddedServer
from farm.settings import load_settings
from tests.integration.ledger.test_any_order import COMMON, AnyOrder

PHASES = (hypothesis.Phase.generate, hypothesis.Phase.shrink)


@dataclass(frozen=True, slots=True)
class Explored:
    """How many schedules were tried, in how long."""

    schedules: int
    steps: int
    seconds: float


def explore(schedules: int, seed: int) -> Explored:
    """Try so many schedules. Raises AssertionError with the shortest that breaks a promise."""
    counts = {"schedules": 0, "steps": 0}

    class Counted(AnyOrder):
        def __init__(self, jobs: Jobs) -> None:
            super().__init__(jobs)
            counts["schedules"] += 1

        def check_invariants(self, *args: object) -> None:
            counts["steps"] += 1
            super().check_invariants(*args)  # type: ignore[arg-type]

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="farm-chaos-") as folder:
        server = EmbeddedServer(Path(folder), appendfsync="no")
        server.start()
        jobs = Jobs(load_settings({}, redis={"url": server.url}))
        try:
            machine = hypothesis.seed(seed)(lambda: Counted(jobs))
            profile = hypothesis.settings(COMMON, max_examples=schedules, database=None, phases=PHASES)
            run_state_machine_as_test(machine, settings=profile)  # type: ignore[arg-type]
        finally:
            jobs.client.close()
            server.stop()
    return Explored(counts["schedules"], counts["steps"], time.monotonic() - began)
