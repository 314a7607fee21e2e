"""When a queued job may end: its place in line, and the measured pace of its model. Knows no server.

An estimate leans to the early side: it takes for granted that more sequences at once do not slow each other down. So a
deadline that it says is missed can hardly be met.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FIELDS = 5  # of a job in what position.lua answers


@dataclass(frozen=True, slots=True)
class Pace:
    """How a model's jobs go through. ``free`` slots run nothing. A pace of 0 is not known yet."""

    slots: int
    free: int
    tokens_per_s: float
    """Of one running sequence."""
    tokens_per_job: float


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a job stands. Position 1 goes next; 0 does not wait."""

    position: int
    pace: Pace

    def eta_s(self, least: int, most: int, *, later: int = 0) -> float | None:
        """Seconds until a job that generates ``least`` to ``most`` tokens has ended; None when nothing can be said.

        later: how many more jobs go before it than its position says.
        """
        pace = self.pace
        if not self.position or not pace.slots or not pace.tokens_per_s:
            return None
        rounds = max(0, self.position + later - pace.free) / pace.slots
        own = min(most, max(least, pace.tokens_per_job))
        return round((rounds * pace.tokens_per_job + own) / pace.tokens_per_s, 1)


def read(answer: Sequence[object]) -> list[Standing]:
    """What position.lua answered."""
    found = []
    for start in range(0, len(answer), FIELDS):
        position, slots, free, per_s, per_job = map(str, answer[start : start + FIELDS])
        found.append(Standing(int(position), Pace(int(slots), int(free), float(per_s), float(per_job))))
    return found
