"""What rank 0 tells the others over their sockets: once what to load, then each step's layout.

The first message is JSON. A layout is plain integers of 64 bits, since tables of pages are thousands of numbers a step
and JSON would take as long as a GPU's step. Both ends are of one release: there is no schema to grow.
"""

from __future__ import annotations

import json
from array import array
from dataclasses import asdict, dataclass

from workers.engine.kv.arena import Block
from workers.engine.kv.manager import Change, Clear, Copy
from workers.engine.layout import Layout, Span
from workers.engine.sequence import Pages, Place

_BLOCK, _PAGES = range(2)
_COPY, _CLEAR = range(2)


@dataclass(frozen=True, slots=True)
class Setup:
    """All that a rank needs to load its part and to meet the others.

    folder: of the checkpoint.  device, dtype: torch's names.  slots: sequences at once.  context: tokens of the longest
    of them.  native: whether kernels may be used that are not torch's.  threads: of this rank.
    meeting: a file that every rank has open, over which they find each other.  timeout_s: for that.
    """

    folder: str
    rank: int
    ranks: int
    device: str
    dtype: str
    is_paged: bool
    kv_tokens: int
    slots: int
    context: int
    native: bool
    threads: int
    backend: str
    meeting: str
    timeout_s: float

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, packet: bytes) -> Setup:
        return cls(**json.loads(packet))


def encode_layout(layout: Layout) -> bytes:
    """A layout as bytes."""
    counts = (len(layout.ids), len(layout.sampled), len(layout.spans), len(layout.changes))
    numbers = array("q", (layout.decodes, *counts))
    numbers.extend(layout.ids)
    numbers.extend(layout.sampled)
    for span in layout.spans:
        numbers.extend((span.start, span.count))
        numbers.extend(_encode_place(span.place))
    for change in layout.changes:
        if isinstance(change, Clear):
            numbers.extend((_CLEAR, change.start, change.count))
            numbers.extend(_encode_place(change.place))
        else:
            numbers.extend((_COPY, change.source_start, change.target_start, change.count))
            numbers.extend((change.source.offset, change.source.size, change.target.offset, change.target.size))
    return numbers.tobytes()


def decode_layout(packet: bytes) -> Layout:
    """The layout that was encoded."""
    numbers = array("q")
    numbers.frombytes(packet)
    return _Reader(numbers.tolist()).layout()


def _encode_place(place: Place) -> list[int]:
    if isinstance(place, Block):
        return [_BLOCK, place.offset, place.size]
    return [_PAGES, len(place.table), *place.table]


class _Reader:
    """Takes numbers off a list, in order."""

    def __init__(self, numbers: list[int]) -> None:
        self._numbers = numbers
        self._at = 0

    def layout(self) -> Layout:
        decodes, ids, sampled, spans, changes = self._take(5)
        return Layout(
            ids=self._take(ids),
            sampled=self._take(sampled),
            spans=[self._span() for _ in range(spans)],
            decodes=decodes,
            changes=[self._change() for _ in range(changes)],
        )

    def _span(self) -> Span:
        start, count = self._take(2)
        return Span(self._place(), start, count)

    def _place(self) -> Place:
        kind, first = self._take(2)
        return Block(first, *self._take(1)) if kind == _BLOCK else Pages(self._take(first))

    def _change(self) -> Change:
        if self._take(1) == [_CLEAR]:
            start, count = self._take(2)
            return Clear(self._place(), start, count)
        source_start, target_start, count = self._take(3)
        source, target = Block(*self._take(2)), Block(*self._take(2))
        return Copy(source, source_start, target, target_start, count)

    def _take(self, count: int) -> list[int]:
        taken = self._numbers[self._at : self._at + count]
        self._at += count
        return taken
