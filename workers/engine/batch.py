"""A step over contiguous blocks as tensors: which rows are whose, where their keys go, what they attend to.

Made anew each step; decode rows stay prepared while the same blocks decode. Stands between the layout, which
knows no tensors, and the stage, which knows no sequences.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from workers.engine.kernels.attention import alibi_slopes, attend_chunk, bias_of
from workers.engine.kernels.decode import DecodeRows, decodes_at_once
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
        decodes: DecodeRows | None,
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
    """Consecutive rows of one sequence and their bias, the same for all layers."""

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
    """Makes batches, and keeps decode rows prepared from step to step while that holds.

    Where decode rows can't be attended at once, as in 16 bits, each is attended by itself, as a chunk of one row.
    """

    def __init__(self, cache: KVCache, slopes: Tensor | None = None) -> None:
        """slopes: of the cache's heads, where these are not all of the model's."""
        self._cache = cache
        self._slopes = alibi_slopes(cache.heads) if slopes is None else slopes
        self._at_once = cache.dtype is torch.float32 and decodes_at_once()
        self._decodes: DecodeRows | None = None

    def batch(self, layout: Layout) -> ContiguousBatch:
        """Turn a layout into tensors."""
        spans = layout.spans
        where = torch.tensor([(block.offset, block.size, span.start) for span in spans for block in (_block(span),)])
        offsets, sizes, positions = where.unbind(1)
        if len(spans) > layout.decodes:
            counts = torch.tensor([span.count for span in spans])
            offsets, sizes, starts = where.repeat_interleave(counts, 0).unbind(1)
            within = torch.arange(len(layout.ids)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
            positions = starts + within
        rows = self._cache.rows(offsets, sizes, positions)
        ids = layout.ids + [0] * (-len(layout.ids) % PAD) if len(spans) > layout.decodes else layout.ids
        at_once = layout.decodes if self._at_once else 0
        decodes = self._prepared(spans[:at_once], positions[:at_once]) if at_once else None
        first, chunks = at_once, []
        for span in spans[at_once:]:
            chunks.append(_Chunk(span, first, self._slopes))
            first += span.count
        sampled = torch.tensor(layout.sampled, dtype=torch.int64)
        return ContiguousBatch(self._cache, torch.tensor(ids), sampled, rows, decodes, chunks)

    def _prepared(self, spans: list[Span], positions: Tensor) -> DecodeRows:
        """These decode rows, with this step's bias."""
        blocks, lengths = [_block(span) for span in spans], [span.start + 1 for span in spans]
        if self._decodes is None or not self._decodes.fits(blocks, lengths):
            self._decodes = DecodeRows(self._cache, blocks, lengths, self._slopes)
        self._decodes.begin(positions)
        return self._decodes


def _block(span: Span) -> Block:
    assert isinstance(span.place, Block)
    return span.place
