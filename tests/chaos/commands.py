"""What a worker costs the server: commands per generated token while all its slots are busy.

Counted as the server hears them; what a script does inside is one command. Everything that the worker does is in it:
tokens, leases, keeping, dispatching, Celery's deliveries, acknowledgements and events.
"""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import redis

from farm import Farm
from tests.chaos.engine import counted
from tests.chaos.profiles import WASTE, Load
from tests.chaos.record import Recorder
from tests.chaos.testbed import Testbed
from tests.conftest import wait_until

SLOTS = 32
TOKENS = 256  # of each job: what Celery costs is per job, the rest per second
JOBS = 8 * SLOTS
STEP_S = 0.03  # of a decode step: 33 tokens a second for each slot
WARM_UP_S = 3.0
STOP = "enough of this"
PROFILE = replace(WASTE, name="commands", rhythms=(), load=Load(), workers=1, slots=SLOTS, step_s=STEP_S)


@dataclass(frozen=True, slots=True)
class Cost:
    """Commands of one worker by name, and the tokens that it made meanwhile."""

    commands: dict[str, int]
    tokens: int

    @property
    def per_token(self) -> float:
        return sum(self.commands.values()) / self.tokens


def measure(seconds: float) -> Cost:
    """Keep one worker busy and count for a while."""
    with tempfile.TemporaryDirectory(prefix="farm-chaos-") as folder:
        recorder = Recorder(Path(folder) / "history.jsonl", PROFILE.name, 0)
        with Testbed(Path(folder), PROFILE, recorder) as bed, Farm(bed.client_settings()) as farm:
            farm.submit_many([f"prompt {n}" for n in range(JOBS)], max_tokens=TOKENS)
            wait_until(lambda: len(bed.aboard("w1")[1]) == SLOTS, why="all slots to be busy")
            pause = threading.Event()
            pause.wait(WARM_UP_S)
            with _heard(bed.direct) as commands:
                made = counted(bed.counts)
                pause.wait(seconds)
                made = counted(bed.counts) - made
            assert len(bed.aboard("w1")[1]) == SLOTS, "the jobs ran out"
        recorder.close()
    return Cost(dict(commands.most_common()), made)


@contextmanager
def _heard(client: redis.Redis) -> Iterator[Counter[str]]:
    """Count commands by name that the server gets from clients while the block runs."""
    commands: Counter[str] = Counter()

    def listen() -> None:
        for line in monitor.listen():
            if line["command"].endswith(STOP):
                return
            if line["client_type"] != "lua":
                commands[line["command"].partition(" ")[0].lower()] += 1

    with client.monitor() as monitor:  # type: ignore[no-untyped-call]
        listener = threading.Thread(target=listen, name="monitor")
        listener.start()
        try:
            yield commands
        finally:
            client.echo(STOP)
            listener.join()
