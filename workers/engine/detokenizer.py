"""From tokens to text, piece by piece: whole characters only, and nothing that might still become a stop string.

Owns no vocabulary: ``Pieces`` (what a token's bytes are) comes from the tokenizer. Knows no torch.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Protocol


class Pieces(Protocol):
    """Turns one sequence's tokens into text; one per sequence, as it remembers half characters."""

    def push(self, token: int) -> str:
        """The characters that became whole with this token."""

    def flush(self) -> str:
        """What is left: U+FFFD for a character that was never completed, or nothing."""


class BytePieces:
    """Text of a byte-level vocabulary: each token is bytes, and their join is UTF-8.

    ``table`` maps a token id to its bytes, empty for special tokens and for ids without one.
    """

    def __init__(self, table: ByteTable) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._table[token])

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class ByteTable(Protocol):
    """Bytes of each token."""

    def __getitem__(self, token: int, /) -> bytes: ...


class Detokenizer:
    """The text of one sequence, released as it becomes certain.

    The texts of all ``push`` calls and ``flush`` make up the final text, cut before the first stop string. The same
    tokens give the same texts, so a resumed sequence pushes its old tokens again and goes on.
    """

    def __init__(self, pieces: Pieces, stops: Iterable[str]) -> None:
        self._pieces = pieces
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, token: int, *, may_stop: bool = True) -> str:
        """Add a token; return the text that is certain now and set ``stopped`` if a stop string ends it.

        Without ``may_stop`` the text is released as it is, and can't become part of a stop string.
        """
        text = self._held + self._pieces.push(token)
        self._held = ""
        if not may_stop or not self._stops:
            return text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        certain = len(text) - max(_overlap(text, stop) for stop in self._stops)
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """End the text: what was held back, and U+FFFD for half a character."""
        if self.stopped:
            return ""
        text, self._held = self._held + self._pieces.flush(), ""
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of ``text`` that begins ``stop``."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
