"""How many tokens of a long prompt go into a step, so that sequences that decode beside it are not stalled.

It watches how long steps take and knows nothing else, so it fits any model and machine.
"""

from __future__ import annotations

import statistics
from collections import deque

from workers.engine.scheduler import LEAST_BUDGET, Step

_REMEMBERED = 32
"""Steps looked back on: enough to be rid of outliers, few enough to follow the load."""


class Pacer:
    """Bounds a step with prompt tokens to ``slowdown`` times one without."""

    def __init__(self, slowdown: float, budget: int) -> None:
        """slowdown: 1 or more.  budget: prompt tokens of a step at the most."""
        self._slowdown = slowdown
        self._budget = budget
        self._decode_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._token_s: deque[float] = deque(maxlen=_REMEMBERED)

    def observe(self, step: Step, seconds: float) -> None:
        """Note how long a step took."""
        if not step.chunks:
            self._decode_s.append(seconds)
        elif step.decodes and self._decode_s:
            prompt_tokens = step.tokens - len(step.decodes)
            self._token_s.append(max(0.0, seconds - statistics.median(self._decode_s)) / prompt_tokens)

    @property
    def tokens(self) -> int:
        """Prompt tokens for the next step beside decoding sequences."""
        if not self._token_s:
            return min(LEAST_BUDGET, self._budget)
        spare_s = (self._slowdown - 1) * statistics.median(self._decode_s)
        token_s = statistics.median(self._token_s)
        affordable = int(spare_s / token_s) if token_s > 0 else self._budget
        return max(min(LEAST_BUDGET, self._budget), min(self._budget, affordable))
