"""A step as plain rows: token ids, and which rows belong to which stretch of whose memory.

Made once a step, when it is submitted, and then the same for every stage; later changes to a sequence don't touch it.
Knows no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from workers.engine.kv.manager import Change
from workers.engine.scheduler import Step
from workers.engine.sequence import Pages, Place, Sequence


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive rows of a step that belong to one sequence: ``count`` tokens from position ``start`` on."""

    place: Place
    start: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """The rows of a step, those of the first ``decodes`` spans being single tokens.

    ids: a token id per row; 0 where a step in flight is to give it, the rows of ``unknown``.
    sampled: the rows that give a token, decode rows first.
    """

    ids: list[int]
    spans: list[Span]
    decodes: int
    sampled: list[int]
    changes: list[Change]
    unknown: list[int] = field(default_factory=list)


def lay_out(step: Step) -> Layout:
    """Turn the step that was just scheduled into rows, in its own order."""
    positions = [sequence.computed + sequence.in_flight - 1 for sequence in step.decodes]
    pairs = list(zip(step.decodes, positions, strict=True))
    unknown = [row for row, (sequence, position) in enumerate(pairs) if position >= len(sequence.tokens)]
    ids = [sequence.tokens[at] if at < len(sequence.tokens) else 0 for sequence, at in pairs]
    spans = [Span(_held(sequence), at) for sequence, at in pairs]
    sampled = list(range(len(ids)))
    for chunk in step.chunks:
        start = chunk.sequence.computed + chunk.sequence.in_flight - chunk.count
        ids += chunk.sequence.tokens[start : start + chunk.count]
        spans.append(Span(_held(chunk.sequence), start, chunk.count))
        if chunk.completes:
            sampled.append(len(ids) - 1)
    return Layout(ids, spans, len(step.decodes), sampled, step.changes, unknown)


def _held(sequence: Sequence) -> Place:
    """Where it lies now: a table of pages is copied, since it may grow while the step is in flight."""
    place = sequence.place
    assert place is not None
    return Pages([*place.table]) if isinstance(place, Pages) else place
