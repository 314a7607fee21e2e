"""How often values fell between bounds, and their sum: all that a histogram is. Cheap enough for every step."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Distribution:
    """Counts by bucket; the last one holds what is above every bound. Not thread-safe."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """bounds: ascending; a value equal to one is in its bucket."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add(self, counts: Sequence[int], total: float) -> None:
        """Count what another distribution with these bounds has counted."""
        self.counts = [one + more for one, more in zip(self.counts, counts, strict=True)]
        self.total += total
