"""A step over contiguous blocks as tensors: which rows are whose, where their keys go, what they attend to.

Made anew each step; decode rows keep their grouping while the same blocks decode. Stands between the layout, which
knows no tensors, and the stage, which knows no sequences.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from workers.engine.kernels.attention import DecodeGroups, alibi_slopes, attend_chunk, bias_of
from workers.engine.kv.arena import Block
from workers.engine.kv.cache import KVCache
from workers.engine.layout import Layout, Span

PAD = 16
"""Rows of a step with prompt chunks are padded to a multiple: a new row count costs oneDNN 0.6 ms per layer shape."""


class Batch(Protocol):
    """The rows of one step: decode rows first, then the chunks, then padding whose results nobody reads.

    ids: [tokens]; sampled: [sampled], the rows that give a token, decode rows first.
    """

    @property
    def ids(self) -> Tensor: ...

    @property
    def sampled(self) -> Tensor: ...

    def attend(self, layer: int, qkv: Tensor, out: Tensor) -> None:
        """Store a layer's keys and values, and attend every row. ``layer`` counts within the stage.

        qkv: [tokens, heads, 3, head_dim]; out: [tokens, heads, head_dim], written but for padding.
        """


class ContiguousBatch:
    """A batch over contiguous blocks."""

    def __init__(
        self,
        cache: KVCache,
        ids: Tensor,
        sampled: Tensor,
        rows: Tensor,
        decodes: DecodeGroups | None,
        chunks: list[_Chunk],
    ) -> None:
        self.ids = ids
        self.sampled = sampled
        self._cache = cache
        self._rows = rows  # [live tokens, heads, 2]
        self._decodes = decodes
        self._chunks = chunks

    def attend(self, layer: int, qkv: Tensor, out: Tensor) -> None:
        """Store a layer's keys and values, and attend every row; shapes as in ``Batch``."""
        self._cache.write(layer, self._rows, qkv[: self._rows.shape[0], :, 1:])
        if self._decodes is not None:
            self._decodes.attend(layer, qkv, out)
        for chunk in self._chunks:
            chunk.attend(self._cache, layer, qkv, out)


class _Chunk:
    """One prompt chunk's rows and its bias, the same for all layers."""

    def __init__(self, span: Span, first: int, slopes: Tensor) -> None:
        self._span = span
        self._block = _block(span)
        self._rows = slice(first, first + span.count)
        end = span.start + span.count
        self._bias = bias_of(slopes, torch.arange(end), torch.arange(span.start, end)).transpose(0, 1)

    def attend(self, cache: KVCache, layer: int, qkv: Tensor, out: Tensor) -> None:
        attend_chunk(
            cache, layer, self._block, self._span.start + self._span.count, qkv[self._rows], out[self._rows], self._bias
        )


class Batcher:
    """Makes batches, and keeps the decode rows' groups from step to step while they hold."""

    def __init__(self, cache: KVCache, slopes: Tensor | None = None) -> None:
        """slopes: of the cache's heads, where these are not all of the model's."""
        self._cache = cache
        self._slopes = alibi_slopes(cache.heads) if slopes is None else slopes
        self._groups: DecodeGroups | None = None

    def batch(self, layout: Layout) -> ContiguousBatch:
        """Turn a layout into tensors. Its decode rows are in the order of their blocks, as groups want them."""
        spans = layout.spans
        where = torch.tensor([(block.offset, block.size, span.start) for span in spans for block in (_block(span),)])
        offsets, sizes, positions = where.unbind(1)
        if len(spans) > layout.decodes:
            counts = torch.tensor([span.count for span in spans])
            offsets, sizes, starts = where.repeat_interleave(counts, 0).unbind(1)
            within = torch.arange(len(layout.ids)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
            positions = starts + within
        rows = self._cache.rows(offsets, sizes, positions)
        decodes = layout.decodes
        ids = layout.ids + [0] * (-len(layout.ids) % PAD) if len(spans) > decodes else layout.ids
        first, chunks = decodes, []
        for span in spans[decodes:]:
            chunks.append(_Chunk(span, first, self._slopes))
            first += span.count
        groups = self._grouped(spans[:decodes], positions[:decodes]) if decodes else None
        sampled = torch.tensor(layout.sampled, dtype=torch.int64)
        return ContiguousBatch(self._cache, torch.tensor(ids), sampled, rows, groups, chunks)

    def _grouped(self, spans: list[Span], positions: Tensor) -> DecodeGroups:
        """The groups of these decode rows, with this step's bias."""
        blocks, lengths = [_block(span) for span in spans], [span.start + 1 for span in spans]
        if self._groups is None or not self._groups.fits(blocks, lengths):
            self._groups = DecodeGroups(self._cache, blocks, lengths, self._slopes)
        self._groups.begin(positions)
        return self._groups


def _block(span: Span) -> Block:
    assert isinstance(span.place, Block)
    return span.place
