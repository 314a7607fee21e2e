"""How long to wait before trying again."""

from __future__ import annotations

import random
from collections.abc import Callable

_MOST_DOUBLINGS = 64  # far beyond any cap, and still a float


def doubled_s(tries: int, base_s: float, cap_s: float) -> float:
    """The wait after so many tries: ``base_s`` after none, then twice as long each time, up to ``cap_s``."""
    return min(cap_s, base_s * 2.0 ** min(tries, _MOST_DOUBLINGS))


def jittered_s(tries: int, base_s: float, cap_s: float, draw: Callable[[], float] = random.random) -> float:
    """A wait drawn evenly from nothing to ``doubled_s``: full jitter, so that many don't come back at once.

    draw: a number from 0 to 1.
    """
    return draw() * doubled_s(tries, base_s, cap_s)
