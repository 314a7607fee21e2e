"""The history of a run: every event that a client saw and every fault, in memory and as JSON lines on disk.

Times are seconds since the beginning on one monotonic clock; ``Begun.wall`` ties them to the ledger's clock.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from tests.chaos.schedule import Fault


@dataclass(frozen=True, slots=True)
class Begun:
    """The run began: Unix seconds then, the profile, and the seed of schedule and clients."""

    wall: float
    profile: str
    seed: int


@dataclass(frozen=True, slots=True)
class Asked:
    """A client is about to submit this job for the first time. ``deadline_s`` is from then."""

    t: float
    job: str
    prompt: str
    max_tokens: int
    seed: int | None = None
    temperature: float = 0.0
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a client that returned or raised after ``took_s``.

    ``limit_s`` is its own timeout, None for one that waits as long as it takes. ``state`` is the state that it
    reported of its job, ``tokens`` and ``text`` what it returned of it. ``error`` is the code of what it raised.
    """

    t: float
    took_s: float
    client: str
    op: str
    jobs: tuple[str, ...]
    limit_s: float | None = None
    error: str = ""
    state: str = ""
    tokens: tuple[int, ...] = ()
    text: str = ""

    @property
    def ended(self) -> float:
        return self.t + self.took_s

    @property
    def accepts(self) -> bool:
        """Whether its jobs were accepted then, as far as the client knows."""
        return self.op in ("submit", "map") and not self.error

    def __str__(self) -> str:
        limit = "" if self.limit_s is None else f" within {self.limit_s:g} s"
        said = self.error or self.state or "ok"
        tokens = f", {len(self.tokens)} tokens" if self.tokens else ""
        return f"{self.t:8.2f} s  {self.client} {self.op}{limit}: {said}{tokens} after {self.took_s:.2f} s"


@dataclass(frozen=True, slots=True)
class Heard:
    """A stream gave tokens. ``reader`` numbers the stream, ``index`` is the client's place in the text afterwards."""

    t: float
    reader: int
    job: str
    index: int
    tokens: tuple[int, ...]
    text: str

    def __str__(self) -> str:
        start = self.index - len(self.tokens)
        return f"{self.t:8.2f} s  stream {self.reader}: tokens {start} to {self.index}"


@dataclass(frozen=True, slots=True)
class Struck:
    """A fault was carried out. ``worker`` is the incarnation that it hit and ``held`` the jobs aboard, if known."""

    t: float
    fault: Fault
    worker: str = ""
    held: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """A fault found nothing to hit."""

    t: float
    fault: Fault


@dataclass(frozen=True, slots=True)
class Gone:
    """A worker process ended. ``wanted`` is why: kill, terminate, or "" when nobody had asked it to.

    ``was_up`` tells one that had joined the farm from one that was still starting.
    """

    t: float
    name: str
    code: int
    wanted: str
    was_up: bool
    took_s: float = 0.0


Event = Begun | Asked | Call | Heard | Struck | Skipped | Gone
_KINDS: dict[str, type] = {kind.__name__: kind for kind in (Begun, Asked, Call, Heard, Struck, Skipped, Gone)}

E = TypeVar("E", bound=Event)


@dataclass
class History:
    """All events of a run, in the order in which they were recorded."""

    events: list[Event] = field(default_factory=list)

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def wall(self) -> float:
        """Unix seconds at the beginning."""
        return self.of(Begun)[0].wall

    @property
    def asked(self) -> dict[str, Asked]:
        return {event.job: event for event in self.of(Asked)}

    @property
    def acknowledged(self) -> set[str]:
        """Jobs whose submission returned, or that ``map`` answered."""
        return {job for call in self.of(Call) if call.accepts for job in call.jobs}

    @classmethod
    def read(cls, path: Path) -> History:
        """A history from disk; a last line that was cut off is left out."""
        lines = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        return cls([_decode(line) for line in lines])


class Recorder:
    """Writes a history as it happens. Thread-safe."""

    def __init__(self, path: Path, profile: str, seed: int) -> None:
        self.history = History()
        self._lock = threading.Lock()
        self._file = path.open("w", encoding="utf-8")
        self._start = time.monotonic()
        self.add(Begun(time.time(), profile, seed))

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._start

    def add(self, event: Event) -> None:
        line = _encode(event)
        with self._lock:
            self.history.events.append(event)
            self._file.write(line)

    def close(self) -> None:
        with self._lock:
            self._file.close()


def _encode(event: Event) -> str:
    body = {"is": type(event).__name__, **asdict(event)}
    return json.dumps(body, separators=(",", ":")) + "\n"


def _decode(line: str) -> Event:
    body = json.loads(line)
    kind = _KINDS[body.pop("is")]
    if "fault" in body:
        body["fault"] = Fault(**body["fault"])
    made: Event = kind(**{name: _tuple(value) for name, value in body.items()})
    return made


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
