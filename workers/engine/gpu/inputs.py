"""The inputs of decode steps in buffers that never move, so that a captured graph finds them.

Rows are padded to a bucket. A padding row is a token 0 at position 0 of a page that no sequence ever gets, so what it
writes and reads is nobody's.
"""

from __future__ import annotations

import numpy as np
import torch

from workers.engine.kv.paged import PAGE
from workers.engine.layout import Layout, Span
from workers.engine.sequence import Pages

_SMALL = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
_STEP = 64


def buckets(slots: int) -> list[int]:
    """Row counts that decode steps are padded to, rising; the last one holds ``slots`` rows."""
    small = [rows for rows in _SMALL if rows < slots]
    large = range(_SMALL[-1] + _STEP, slots, _STEP)
    return [*small, *large, slots]


def bucket_of(rows: int, slots: int) -> int:
    """The least bucket that holds so many rows."""
    return next(bucket for bucket in buckets(slots) if bucket >= rows)


class DecodeInputs:
    """Row by row a length, the new token included, and a table of pages."""

    def __init__(self, slots: int, context: int, scratch_page: int, device: torch.device) -> None:
        """context: tokens of the longest sequence."""
        self.slots = slots
        self._scratch = scratch_page
        width = -(-context // PAGE)
        self._rows = torch.full((slots, 1 + width), scratch_page, dtype=torch.int32, device=device)
        self.lengths, self.tables = self._rows[:, 0], self._rows[:, 1:]
        self.lengths.fill_(1)

    def fill(self, spans: list[Span], rows: int) -> int:
        """Set the rows of these decoding spans, and padding up to ``rows``. Returns the pages of the longest.

        One copy, for which the host does not wait.
        """
        packed = np.full((rows, self._rows.shape[1]), self._scratch, dtype=np.int32)
        packed[:, 0] = 1
        longest = pack(packed[:, 1:], spans)
        packed[: len(spans), 0] = [span.start + 1 for span in spans]
        staged = torch.from_numpy(packed)
        if self._rows.device.type == "cuda":
            staged = staged.pin_memory()
        self._rows[:rows].copy_(staged, non_blocking=True)
        return longest


def pack(tables: np.ndarray[tuple[int, ...], np.dtype[np.int32]], spans: list[Span]) -> int:
    """Write each span's table of pages into its row, and return how many the longest has, 1 at the least.

    The row's rest is its first page: what another sequence has in its own may not be finite.
    """
    longest = 1
    for row, span in zip(tables, spans, strict=False):
        assert isinstance(span.place, Pages)
        used = pages_of(span)
        row[:used] = span.place.table[:used]
        row[used:] = row[0]
        longest = max(longest, used)
    return longest


def pages_of(span: Span) -> int:
    """Pages that hold a span and all before it."""
    return -(-(span.start + span.count) // PAGE)


def places(layout: Layout) -> tuple[list[int], list[int]]:
    """Page, and place within it, of each row of the layout's chunks."""
    pages: list[int] = []
    slots: list[int] = []
    for span in layout.spans[layout.decodes :]:
        assert isinstance(span.place, Pages)
        positions = range(span.start, span.start + span.count)
        pages += [span.place.table[position // PAGE] for position in positions]
        slots += [position % PAGE for position in positions]
    return pages, slots
