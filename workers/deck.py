"""The jobs aboard a worker, and when each may go into the engine.

All at once, as a rule. A job on trial has been aboard at so many deaths that the next one decides: it goes in when all
others have proven themselves, and nobody follows until it has. So a death is its own doing, and no innocent is ever
declared dead for another's. Knows neither the ledger's calls nor the engine process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from farm.ledger.attempts import PROOF
from workers.aboard import Aboard

L = TypeVar("L")
LOOK_S = 0.05


class Deck:
    """Jobs by nonce, which is also the engine's name for them: what an earlier attempt left in the pipe is nobody's."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._aboard: dict[str, Aboard] = {}
        self._trial: Aboard | None = None

    def __len__(self) -> int:
        return len(self._aboard)

    @property
    def is_on_trial(self) -> bool:
        """Whether some job has to run alone for now, so that no more should come aboard."""
        return self._trial is not None

    def all(self) -> list[Aboard]:
        with self._changed:
            return list(self._aboard.values())

    def get(self, nonce: str) -> Aboard | None:
        return self._aboard.get(nonce)

    def board(self, running: Aboard, serving: Callable[[], L | None]) -> L | None:
        """Bring a job aboard and wait for its turn. Returns the life of the engine that may have it now.

        serving: the life that takes jobs. None: there is none any more, or the job was settled while it waited.
        """
        with self._changed:
            life = serving()
            if life is None:
                return None
            self._aboard[running.claim.nonce] = running
            while not self._may_go(running):
                self._changed.wait(LOOK_S)
                if running.settled.is_set():
                    return None
            running.life = life = serving()
            return life

    def leave(self, running: Aboard) -> None:
        """Take a job from board."""
        with self._changed:
            self._aboard.pop(running.claim.nonce, None)
            if self._trial is running:
                self._trial = None
            self._changed.notify_all()

    def end_trial(self) -> bool:
        """Let others in again if the job on trial has proven itself. Returns whether that ended the trial."""
        with self._changed:
            if self._trial is None or not _has_gained(self._trial, self._trial.claim.proof):
                return False
            self._trial = None
            self._changed.notify_all()
            return True

    def _may_go(self, running: Aboard) -> bool:
        if self._trial is None and running.claim.proof:
            self._trial = running
        if self._trial is None:
            return True
        others = [other for other in self._aboard.values() if other.life is not None]
        return running is self._trial and all(other.settled.is_set() or _has_gained(other, PROOF) for other in others)


def _has_gained(running: Aboard, tokens: int) -> bool:
    """Whether the ledger is known to hold so many new tokens of this attempt."""
    return running.flushed - len(running.claim.kept) >= tokens
