"""What a run is made of: the farm, its clients, and the kinds of faults. Each profile answers one question."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from tests.chaos.schedule import Kind, Rhythm

ALL_WORKER: tuple[Kind, ...] = (
    "kill-worker",
    "lose-worker",
    "terminate-worker",
    "freeze-worker",
    "part-worker",
    "kill-engine",
    "freeze-engine",
)
ALL_NETWORK: tuple[Kind, ...] = ("cut", "refuse", "stall", "delay", "drop-reply", "cut-request")


@dataclass(frozen=True, slots=True)
class Load:
    """What clients do: so many threads over so many ``Farm`` objects, each submitting batches and following its jobs.

    ``jobs`` None means: until the time is up. ``long`` is the share of jobs that take seconds, so that they outlive a
    lease; ``deadlines`` the share of those that have one. ``requests`` is how many prompts the real model gets, and
    ``follow`` weighs what a client does with a job that it submitted. ``maps`` is the share of batches that go through
    ``Farm.map`` instead.
    """

    jobs: int | None = None
    clients: int = 12
    farms: int = 3
    batch: int = 20
    tokens: tuple[int, int] = (4, 32)
    long: float = 0.0
    long_tokens: tuple[int, int] = (100, 400)
    deadlines: float = 0.0
    requests: int = 0
    maps: float = 0.0
    follow: dict[str, int] = field(
        default_factory=lambda: {"wait": 8, "stream": 4, "take over": 3, "poll": 2, "cancel": 1, "leave": 2}
    )


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of run. ``seconds`` is how long faults go on at most; they end with the load."""

    name: str
    about: str
    rhythms: tuple[Rhythm, ...]
    load: Load
    seconds: float
    workers: int = 3
    slots: int = 16
    step_s: float = 0.01
    lease_s: float = 10.0
    engine: Literal["stamping", "tiny-bloom"] = "stamping"
    has_proxies: bool = False
    appendfsync: str = "everysec"
    durability: Literal["none", "fsync"] = "none"
    worker_settings: dict[str, object] = field(default_factory=dict)

    def resized(self, *, seconds: float | None = None, jobs: int | None = None) -> Profile:
        """The same for another time, or another number of jobs."""
        load = self.load if jobs is None else replace(self.load, jobs=jobs)
        return replace(self, load=load, seconds=seconds or self.seconds)


KILL = Rhythm(2.0, ("kill-worker", "lose-worker"))
SERVER_KILL = Rhythm(20.0, ("kill-server",))
VOLUME = Load(jobs=10_000, deadlines=0.03, maps=0.15)

KILLS = Profile("kills", "10,000 jobs, 3 workers, a random kill -9 every 2 s", (KILL,), VOLUME, 400)
SERVER = replace(
    KILLS,
    name="server",
    about="and a kill -9 of the server every 20 s, appendfsync always",
    rhythms=(KILL, SERVER_KILL),
    appendfsync="always",
)
NETWORK = replace(
    SERVER,
    name="network",
    about="and a cut, stall or lost reply every 3 s",
    rhythms=(KILL, SERVER_KILL, Rhythm(3.0, ALL_NETWORK)),
    has_proxies=True,
)
MIXED = Profile(
    "mixed",
    "everything at once: kills, freezes and drains of workers, engines and the server, and a bad network",
    (
        Rhythm(2.0, ALL_WORKER),
        Rhythm(10.0, ("kill-server", "stop-server", "freeze-server")),
        Rhythm(3.0, ("cut", "refuse", "stall", "delay")),
        Rhythm(0.7, ("drop-reply",)),
        Rhythm(2.0, ("cut-request",)),
    ),
    Load(clients=24, batch=10, tokens=(4, 64), long=0.15, deadlines=0.03, maps=0.15),
    25,
    step_s=0.02,
    lease_s=2.0,
    has_proxies=True,
    appendfsync="always",
    durability="fsync",
    worker_settings={"ENGINE__WATCHDOG_S": 4},
)
STALE = Profile(
    "stale",
    "workers are cut off or frozen for longer than a lease while others go on with their jobs",
    (Rhythm(4.0, ("part-worker", "freeze-worker"), spans=(3.0, 3.8)),),
    Load(clients=12, batch=4, tokens=(150, 350), follow={"wait": 2, "stream": 1, "leave": 1}),
    20,
    workers=2,
    slots=32,
    step_s=0.02,
    lease_s=2.0,
    has_proxies=True,
)
RECOVERY = Profile(
    "recovery",
    "workers are lost for good while others have free slots: how soon do their jobs run again",
    (Rhythm(5.0, ("lose-worker",)),),
    Load(clients=8, batch=4, tokens=(60, 200), follow={"wait": 1}),
    45,
    step_s=0.05,
)
ENGINES = Profile(
    "engines",
    "the one worker's engine is killed, a real one: how soon do its jobs run again",
    (Rhythm(8.0, ("kill-engine",)),),
    Load(clients=8, batch=4, tokens=(100, 300), follow={"wait": 1}, requests=12),
    32,
    workers=1,
    slots=32,
    engine="tiny-bloom",
)
WASTE = Profile(
    "waste",
    "busy workers, one kill -9 every 10 s: how many tokens are made twice",
    (Rhythm(10.0, ("kill-worker", "lose-worker")),),
    Load(clients=12, batch=16, tokens=(32, 192), follow={"wait": 1}),
    45,
    step_s=0.025,
)
EXACT = Profile(
    "exact",
    "the real tiny-bloom; workers and engines killed: is every text the one of an undisturbed run",
    (Rhythm(3.0, ("kill-worker", "kill-engine", "terminate-worker")),),
    Load(clients=6, batch=10, tokens=(100, 400), follow={"wait": 3, "stream": 2, "take over": 1}, requests=12),
    30,
    workers=2,
    engine="tiny-bloom",
)
PROFILES = {
    profile.name: profile for profile in (KILLS, SERVER, NETWORK, MIXED, STALE, RECOVERY, ENGINES, WASTE, EXACT)
}
