"""What goes wrong, and when: a schedule of faults drawn from a seed, or read from a file to be carried out again.

Pure: it knows no process, no clock and no farm. The same seed, rhythms and workers always give the same schedule.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Generic, Literal, TypeVar, get_args

Kind = Literal[
    "kill-worker",  # SIGKILL; its successor has its name
    "lose-worker",  # SIGKILL with its engine; its successor has another name, as on another machine
    "terminate-worker",  # SIGTERM: it drains
    "freeze-worker",  # SIGSTOP, engine too
    "part-worker",  # the server can't be reached; longer than a lease makes it a stale owner whose engine goes on
    "kill-engine",
    "freeze-engine",  # longer than the watchdog has it replaced
    "kill-server",
    "stop-server",  # SIGTERM
    "freeze-server",
    "cut",  # every connection of the target closes
    "refuse",  # and no new one is taken
    "stall",  # connections stay, nothing flows
    "delay",  # everything comes later
    "drop-reply",  # the server runs a script, and its caller never hears of it
    "cut-request",  # the server never gets it
]
KINDS: tuple[Kind, ...] = get_args(Kind)
ON_SERVER: frozenset[Kind] = frozenset({"kill-server", "stop-server", "freeze-server"})
ON_NETWORK: frozenset[Kind] = frozenset({"cut", "refuse", "stall", "delay", "drop-reply", "cut-request"})
ON_PROXY: frozenset[Kind] = ON_NETWORK | {"part-worker"}
ON_SCRIPT: frozenset[Kind] = frozenset({"drop-reply", "cut-request"})

T = TypeVar("T")
CLIENTS = "clients"
SERVER = "server"
OF_CLIENTS = ("submit", "cancel")
OF_WORKERS = ("claim", "progress", "finish", "release", "register", "dispatch", "upkeep")
RECOVERY_S = 1.0  # a target is left alone this long after a fault

# How long each fault lasts: until the part is started, thawed or connected again.
SPANS: dict[Kind, tuple[float, float]] = {
    "kill-worker": (0.0, 1.0),
    "lose-worker": (0.0, 1.0),
    "terminate-worker": (0.5, 1.0),
    "freeze-worker": (0.5, 5.0),
    "part-worker": (1.0, 5.0),
    "kill-engine": (0.0, 0.0),
    "freeze-engine": (1.0, 6.0),
    "kill-server": (0.0, 1.0),
    "stop-server": (0.0, 1.0),
    "freeze-server": (0.5, 4.0),
    "cut": (0.0, 0.0),
    "refuse": (0.5, 3.0),
    "stall": (0.5, 4.0),
    "delay": (1.0, 4.0),
    "drop-reply": (0.0, 0.0),
    "cut-request": (0.0, 0.0),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong ``at_s`` seconds after the beginning and is undone ``for_s`` seconds later.

    ``target`` is a worker, the clients or the server. ``script`` names the call that loses its reply or its request.
    """

    at_s: float
    kind: Kind
    target: str
    for_s: float = 0.0
    script: str = ""

    def __str__(self) -> str:
        span = f"  for {self.for_s:.2f} s" if self.for_s else ""
        return (
            f"{self.at_s:8.2f} s  {self.kind:<16}  {self.target:<8}{span}{'  of ' + self.script if self.script else ''}"
        )


@dataclass(frozen=True, slots=True)
class Rhythm:
    """Faults of some kinds, one every ``every_s`` seconds; target and span are drawn, and so is the order of the kinds.

    Each kind has its turn before one comes again.
    """

    every_s: float
    kinds: tuple[Kind, ...]
    spans: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """All faults of one run, in order. ``seed`` is also what the clients draw from."""

    seed: int
    profile: str
    seconds: float
    faults: tuple[Fault, ...]

    def to_json(self) -> str:
        """One line of JSON a fault, so that a person may take some out."""
        lines = ",\n    ".join(json.dumps(asdict(fault)) for fault in self.faults)
        head = json.dumps({"seed": self.seed, "profile": self.profile, "seconds": self.seconds})[1:-1]
        return "{" + f'{head}, "faults": [\n    {lines}\n]' + "}\n"

    @classmethod
    def from_json(cls, text: str) -> Schedule:
        """A schedule from its text. Raises ValueError for what is none."""
        try:
            body = json.loads(text)
            faults = tuple(Fault(**fault) for fault in body["faults"])
            schedule = cls(body["seed"], body["profile"], body["seconds"], faults)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no schedule: {error}") from error
        if unknown := {fault.kind for fault in faults} - set(KINDS):
            raise ValueError(f"no schedule: {', '.join(sorted(unknown))} is no kind of fault")
        return schedule

    def __str__(self) -> str:
        head = f"seed {self.seed}, profile {self.profile}, {self.seconds:g} s, {len(self.faults)} faults"
        return "\n".join([head, *map(str, self.faults)])


def draw(seed: int, profile: str, rhythms: Sequence[Rhythm], seconds: float, workers: Sequence[str]) -> Schedule:
    """Draw a schedule. Each rhythm draws by itself, and none hits a target that another fault holds at that time."""
    busy: dict[str, list[tuple[float, float]]] = {}
    faults: list[Fault] = []
    for number, rhythm in enumerate(rhythms):
        dice = random.Random(f"{seed}/{number}")
        kinds = Deck(dice, rhythm.kinds)
        scripts = {True: Deck(dice, OF_CLIENTS), False: Deck(dice, OF_WORKERS)}
        for beat in range(1, int(seconds / rhythm.every_s) + 1):
            kind = kinds.top
            at_s = round((beat + dice.uniform(-0.25, 0.25)) * rhythm.every_s, 2)
            for_s = round(dice.uniform(*(rhythm.spans or SPANS[kind])), 2)
            end_s = at_s + for_s + (0.0 if kind in ON_SCRIPT else RECOVERY_S)
            for target in _targets(dice, kind, workers):
                held = busy.setdefault(target, [])
                if not any(at_s < end and start < end_s for start, end in held):
                    held.append((at_s, end_s))
                    script = scripts[target == CLIENTS].draw() if kind in ON_SCRIPT else ""
                    faults.append(Fault(at_s, kinds.draw(), target, for_s, script))
                    break
    return Schedule(seed, profile, seconds, tuple(sorted(faults, key=lambda fault: fault.at_s)))


def _targets(dice: random.Random, kind: Kind, workers: Sequence[str]) -> list[str]:
    """Where a fault of a kind may be, in an order that is drawn."""
    targets = [SERVER] if kind in ON_SERVER else [*workers, CLIENTS] if kind in ON_NETWORK else list(workers)
    dice.shuffle(targets)
    return targets


class Deck(Generic[T]):
    """Things to draw, each once before one comes again."""

    def __init__(self, dice: random.Random, things: Sequence[T]) -> None:
        self._dice = dice
        self._things = things
        self._left: list[T] = []

    @property
    def top(self) -> T:
        """What is drawn next."""
        self._left = self._left or self._dice.sample(self._things, len(self._things))
        return self._left[-1]

    def draw(self) -> T:
        """Take it."""
        top = self.top
        self._left.pop()
        return top
