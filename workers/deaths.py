"""How often an engine died in a row, what that says of it, and how long to wait before its next life.

A prompt can kill an engine, and an engine can be unable to compute. So the one that follows a death must generate for
no job before it may for one; and when many died with no job's token between them, people are told.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from workers.backoff import doubled_s

FIRST_PAUSE_S = 0.25


@dataclass
class Deaths:
    """Deaths since a job's token. ``most`` of them make the engine failing, until it has passed its test."""

    most: int
    cap_s: float
    count: int = 0
    why: str = ""
    """How the latest came about."""
    _has_passed: bool = field(default=False, repr=False)

    def died(self, why: str) -> None:
        """One more."""
        self.count += 1
        self.why = why
        self._has_passed = False

    def passed_test(self) -> None:
        """The engine generated something, though for no job: it may be tried with one, and the count stands."""
        self._has_passed = True

    def gave_token(self) -> None:
        """A job got a token, which clears the engine."""
        self.count = 0

    @property
    def needs_test(self) -> bool:
        """Whether the next engine must show that it can generate."""
        return self.count > 0

    @property
    def is_failing(self) -> bool:
        """Whether it died too often."""
        return self.count >= self.most and not self._has_passed

    @property
    def pause_s(self) -> float:
        """How long to wait before the next life."""
        return doubled_s(self.count - 1, FIRST_PAUSE_S, self.cap_s) if self.count else 0.0
