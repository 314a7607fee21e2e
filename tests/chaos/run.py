"""One run: a farm, its clients and a schedule of faults, from start to verdict, kept in a folder.

schedule.json   what was to go wrong; ``python -m tests.chaos --replay`` carries it out again
history.jsonl   what clients and the driver saw
census.json     what was left
logs/, server/  of the workers and the server
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from farm import Farm, keys
from tests.chaos import engine
from tests.chaos.census import Census, leaked, load_s, said, world
from tests.chaos.check import check
from tests.chaos.clients import TENANT, Client, Quota, close
from tests.chaos.driver import Driver
from tests.chaos.evidence import Evidence, Violation
from tests.chaos.figures import Figures, figures
from tests.chaos.profiles import Profile
from tests.chaos.prompts import by_rule, prompts_of, twins, undisturbed
from tests.chaos.record import Asked, History, Recorder
from tests.chaos.schedule import Schedule
from tests.chaos.testbed import Testbed

SETTLE_S = 60.0  # how long all may take to end once nothing goes wrong any more
HEAR_S = 10.0  # how long clients may take to hear of it
DRAIN_S = 20.0
SAY_EVERY_S = 5.0
SHOWN = 10  # violations that are printed
MOMENTS = {"lease": {"lease_s": 0.02, "flush_s": 0.001}, "limits": {"retention_s": 0.001}}

SCHEDULE, HISTORY, CENSUS = "schedule.json", "history.jsonl", "census.json"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Verdict:
    """What came of a run."""

    schedule: Schedule
    folder: Path
    violations: list[Violation]
    figures: Figures

    def explain(self) -> str:
        """The broken promises, the schedule that broke them, and where all of it is."""
        return "\n".join(
            [
                f"{len(self.violations)} promises broken:",
                *(f"  {violation}" for violation in self.violations[:SHOWN]),
                *([f"  and {len(self.violations) - SHOWN} more"] if len(self.violations) > SHOWN else []),
                str(self.schedule),
                f"kept in {self.folder}; again: python -m tests.chaos --replay {self.folder / 'schedule.json'}",
            ]
        )


def run(profile: Profile, schedule: Schedule, folder: Path, say: Say = lambda _line: None) -> Verdict:
    """Carry a schedule out and judge it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SCHEDULE).write_text(schedule.to_json(), encoding="utf-8")
    recorder = Recorder(folder / HISTORY, profile.name, schedule.seed)
    try:
        with Testbed(folder, profile, recorder) as bed:
            census = _go(bed, profile, schedule, recorder, say)
    finally:
        recorder.close()
    census.write(folder / CENSUS)
    return _judge(schedule, folder, recorder.history, census)


def judge(folder: Path) -> Verdict:
    """Judge a run that was kept, again."""
    schedule = Schedule.from_json((folder / SCHEDULE).read_text(encoding="utf-8"))
    return _judge(schedule, folder, History.read(folder / HISTORY), Census.read(folder / CENSUS))


def _judge(schedule: Schedule, folder: Path, history: History, census: Census) -> Verdict:
    told = Evidence(history, census, by_rule() if census.made is not None else None)
    violations = check(told)
    return Verdict(schedule, folder, violations, figures(told, violations))


def _go(bed: Testbed, profile: Profile, schedule: Schedule, recorder: Recorder, say: Say) -> Census:
    """From the first job to the last key."""
    quota = Quota(profile.load.jobs)
    farms = [Farm(bed.client_settings(), tenant=TENANT) for _ in range(profile.load.farms)]
    if profile.engine == "tiny-bloom":
        undisturbed(farms[0], recorder, twins(profile))
    clients = [
        Client(number, farms, profile.load, quota, schedule.seed, prompts_of(profile), recorder)
        for number in range(profile.load.clients)
    ]
    driver = Driver(bed, schedule, recorder)
    driver.start()
    for client in clients:
        client.start()
    try:
        _watch(bed, schedule, recorder, clients, driver, say)
    finally:
        quota.is_open = False
        driver.stop()
    say(f"{driver.elapsed_s:5.0f} s: no more faults; all is to end now")
    _settle(bed, clients)
    close(farms, clients, HEAR_S)
    seen = world(bed.direct_settings())
    late = bed.terminate_all(DRAIN_S)
    made = engine.counted(bed.counts) if profile.engine == "stamping" else None
    stayed = leaked(bed.direct_settings(**MOMENTS))
    return Census(seen, said(bed.logs), stayed, late, bed.orphans(), made, load_s(bed.logs))


def _watch(
    bed: Testbed, schedule: Schedule, recorder: Recorder, clients: list[Client], driver: Driver, say: Say
) -> None:
    """Wait until the load is done or the time is up, and say how it goes."""
    pause, said_at = threading.Event(), 0.0
    while driver.elapsed_s < schedule.seconds and any(client.is_alive() for client in clients):
        pause.wait(0.2)
        if driver.elapsed_s - said_at >= SAY_EVERY_S:
            said_at = driver.elapsed_s
            asked, last = len(recorder.history.of(Asked)), driver.latest or "none"
            say(f"{said_at:5.0f} s: {asked:,} jobs asked for, {bed.running} workers run, last fault: {last}")


def _settle(bed: Testbed, clients: list[Client]) -> None:
    """Wait, within reason, until every job is over and every client has heard."""
    pause = threading.Event()
    now = time.monotonic()
    deadline, busy_at = now + SETTLE_S, now
    while now < deadline and now - busy_at < HEAR_S:
        counts = [bed.direct.hvals(key) for key in bed.direct.scan_iter(f"{keys.PREFIX}counts:*", count=10_000)]
        is_busy = any(int(value) for values in counts for value in values)
        if not is_busy and not any(client.is_alive() for client in clients):
            return
        pause.wait(0.2)
        bed.reap()
        now = time.monotonic()
        busy_at = now if is_busy else busy_at
