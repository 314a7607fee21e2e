"""When a queued job may end, and when a queue is empty, by the measured pace of the model. Knows no server.

An estimate leans to the early side: it takes for granted that more sequences at once do not slow each other down. So a
deadline that it says is missed can hardly be met.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# A deadline is refused only if the estimate is twice as long, the pace was told from at least so many jobs, and the
# last of them ended within a minute or two of their usual times: when everything is refused nothing is measured any
# more, and an old pace must not shut the farm.
MARGIN = 2.0
FEW_JOBS = 2  # a pace is told from more than so many, as in position.lua
MEASURED_JOBS = 8
FRESH_S = 60.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How a model's jobs go through. ``free`` slots run nothing. A pace of 0 is not known yet."""

    slots: int
    free: int
    tokens_per_s: float
    """Of one running sequence."""
    tokens_per_job: float
    jobs: float
    """How many finished jobs it was told from, older ones counting less."""
    age_s: float
    """How long ago the last of them ended."""

    @property
    def is_reliable(self) -> bool:
        """Whether a job may be refused because of it."""
        if not self.tokens_per_s or self.jobs < MEASURED_JOBS:
            return False
        return self.age_s <= max(FRESH_S, 2 * self.tokens_per_job / self.tokens_per_s)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a job stands. Position 1 goes next; 0 does not wait. ``ahead_tokens`` are to be generated before it."""

    position: int
    pace: Pace
    ahead_tokens: float

    def eta_s(self, least: int, most: int, *, later: int = 0) -> float | None:
        """Seconds until a job that generates ``least`` to ``most`` tokens has ended; None when nothing can be said.

        later: how many more jobs go before it than its position says.
        """
        pace = self.pace
        if not self.position or not pace.slots or not pace.tokens_per_s:
            return None
        own = min(most, max(least, pace.tokens_per_job))
        wait = 0.0
        if self.position + later > pace.free:
            # A slot must become free, too: with none free, that of one more job.
            wait = max(0.0, self.ahead_tokens + (1 + later - pace.free) * pace.tokens_per_job) / pace.slots
        return round((wait + own) / pace.tokens_per_s, 1)

    def too_late_s(self, least: int, most: int, deadline_s: float, *, later: int = 0) -> float | None:
        """The estimate, if a deadline can't be met by far; None if it may be, or too little is known to say so."""
        eta_s = self.eta_s(least, most, later=later)
        if eta_s is None or not self.pace.is_reliable or eta_s <= MARGIN * deadline_s:
            return None
        return eta_s


def empty_in_s(waiting: int, slots: int, rate: Mapping[str, str | float]) -> float | None:
    """Seconds until so many jobs of a model wait no more: each as long in one of its slots as jobs of late.

    rate: the key of that name. 0 when none waits; None while nobody works or too little was measured.
    """
    if waiting <= 0:
        return 0.0
    jobs = float(rate.get("jobs", 0))
    if not slots or jobs <= FEW_JOBS:
        return None
    return round(waiting * float(rate["slot_ms"]) / jobs / slots / 1000, 3)


def read(answer: tuple[list[int], list[str], list[int], list[list[str | int]]]) -> list[Standing]:
    """What position.lua answered."""
    positions, ahead, numbers, found = answer
    paces = [Pace(int(slots), int(free), *map(float, measured)) for slots, free, *measured in found]
    return [
        Standing(position, paces[number - 1], float(tokens))
        for position, tokens, number in zip(positions, ahead, numbers, strict=True)
    ]
