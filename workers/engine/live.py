"""A job that the engine is generating: its sequence, its text, and the tokens that it brought along."""

from __future__ import annotations

from dataclasses import dataclass

from workers.engine.detokenizer import Detokenizer
from workers.engine.sequence import Sequence


@dataclass(slots=True, eq=False)
class Live:
    """A sequence, its text, and ``resume``: what earlier attempts generated. ``first_at`` and ``last_at`` are when
    it got its first new token and its latest, by the engine's clock."""

    sequence: Sequence
    detokenizer: Detokenizer
    resume: list[int]
    first_at: float | None = None
    last_at: float = 0.0

    def push(self, token: int) -> str:
        """Append a token and return the text that became certain."""
        self.sequence.append(token)
        # A stop counts once min_tokens tokens are there: this one included.
        return self.detokenizer.push(token, may_stop=self.sequence.may_stop)

    def replay(self) -> bool:
        """Take in the tokens of earlier attempts. False if they already ended the text."""
        for token in self.resume:
            if self.sequence.is_complete:
                break
            if token in self.sequence.stop_ids and self.sequence.may_stop:
                return False
            self.push(token)
            if self.detokenizer.stopped:
                return False
        return True
