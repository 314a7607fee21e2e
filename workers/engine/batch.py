"""One step as tensors: which tokens, where their keys and values go, and what each may attend to.

Between the scheduler's plan, which knows no tensors, and the stage, which knows no sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.engine.arena import Block
from workers.engine.kernels.attention import DecodeGroups, Span, alibi_slopes, attend_chunk, bias_of
from workers.engine.kv_cache import KVCache
from workers.engine.scheduler import Step
from workers.engine.sequence import Sequence

PAD = 16
"""Rows of a step with prompt chunks are padded to a multiple: a new row count costs oneDNN 0.6 ms per layer shape."""


class Batch:
    """The rows of one step: decode rows first, then the chunks, then padding whose results nobody reads.

    ids: [tokens]; sampled: [sampled], the rows that give a token, decode rows first.
    """

    def __init__(
        self, ids: Tensor, sampled: Tensor, rows: Tensor, decodes: DecodeGroups | None, chunks: list[_Chunk]
    ) -> None:
        self.ids = ids
        self.sampled = sampled
        self._rows = rows  # [live tokens, heads, 2]
        self._decodes = decodes
        self._chunks = chunks

    def attend(self, cache: KVCache, layer: int, qkv: Tensor, out: Tensor) -> None:
        """Store a layer's keys and values, and attend every row.

        qkv: [tokens, heads, 3, head_dim]; out: [tokens, heads, head_dim], written but for padding.
        """
        cache.write(layer, self._rows, qkv[: self._rows.shape[0], :, 1:])
        if self._decodes is not None:
            self._decodes.attend(layer, qkv, out)
        for chunk in self._chunks:
            chunk.attend(cache, layer, qkv, out)


class _Chunk:
    """One prompt chunk's rows and its bias, the same for all layers."""

    def __init__(self, span: Span, first: int, slopes: Tensor) -> None:
        self._span = span
        self._rows = slice(first, first + span.count)
        end = span.start + span.count
        self._bias = bias_of(slopes, torch.arange(end), torch.arange(span.start, end)).transpose(0, 1)

    def attend(self, cache: KVCache, layer: int, qkv: Tensor, out: Tensor) -> None:
        attend_chunk(cache, layer, self._span, qkv[self._rows], out[self._rows], self._bias)


class Batcher:
    """Makes batches, and keeps the decode rows' groups from step to step while they hold."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._slopes = alibi_slopes(cache.heads)
        self._groups: DecodeGroups | None = None

    def order(self, step: Step) -> Step:
        """The same step with its decode rows sorted by size and place of their blocks, as groups want them."""
        return Step(sorted(step.decodes, key=_place), step.chunks)

    def batch(self, step: Step) -> Batch:
        """Turn an ordered step into tensors."""
        ids = [sequence.tokens[sequence.computed] for sequence in step.decodes]
        spans = [Span(_block(sequence), sequence.computed) for sequence in step.decodes]
        for chunk in step.chunks:
            start = chunk.sequence.computed
            ids += chunk.sequence.tokens[start : start + chunk.count]
            spans.append(Span(_block(chunk.sequence), start, chunk.count))
        counts = torch.tensor([span.count for span in spans])
        last = counts.cumsum(0)
        where = torch.tensor([(span.block.offset, span.block.size, span.start) for span in spans])
        offsets, sizes, starts = where.repeat_interleave(counts, 0).unbind(1)
        positions = starts + torch.arange(len(ids)) - (last - counts).repeat_interleave(counts)
        decodes = len(step.decodes)
        sampled = [*range(decodes)] + [
            int(last[decodes + i]) - 1 for i, chunk in enumerate(step.chunks) if chunk.completes
        ]
        rows = self._cache.rows(offsets, sizes, positions)
        if step.chunks:
            ids += [0] * (-len(ids) % PAD)
        first, chunks = decodes, []
        for span in spans[decodes:]:
            chunks.append(_Chunk(span, first, self._slopes))
            first += span.count
        groups = self._grouped(spans[:decodes], positions[:decodes]) if decodes else None
        return Batch(torch.tensor(ids), torch.tensor(sampled, dtype=torch.int64), rows, groups, chunks)

    def _grouped(self, spans: list[Span], positions: Tensor) -> DecodeGroups:
        """The groups of these decode rows, with this step's bias."""
        blocks, lengths = [span.block for span in spans], [span.start + 1 for span in spans]
        if self._groups is None or not self._groups.fits(blocks, lengths):
            self._groups = DecodeGroups(self._cache, blocks, lengths, self._slopes)
        self._groups.begin(positions)
        return self._groups


def _block(sequence: Sequence) -> Block:
    assert sequence.block is not None
    return sequence.block


def _place(sequence: Sequence) -> tuple[int, int]:
    block = _block(sequence)
    return block.size, block.offset
