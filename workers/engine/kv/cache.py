"""Keys and values of all sequences: one flat buffer per layer, each block of the arena contiguous and head-major.

Who holds which block is ``arena``'s affair. A block of ``size`` tokens at ``offset`` is [heads, size, head_dim] at rows
``offset * heads`` and on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.engine.kv.arena import Block
from workers.engine.kv.manager import Change, Clear


class KVCache:
    """The buffers: per layer [2, tokens * heads, head_dim], keys first."""

    def __init__(self, layers: int, heads: int, head_dim: int, kv_tokens: int, dtype: torch.dtype) -> None:
        """Reserve the memory. Zeros, since masked positions are read too and must hold finite numbers."""
        self.heads = heads
        self.head_dim = head_dim
        self.dtype = dtype
        self.layers = [torch.zeros(2, kv_tokens * heads, head_dim, dtype=dtype) for _ in range(layers)]
        self._flat = [layer.view(-1, head_dim) for layer in self.layers]
        # Row of each head's keys, and of its values, in the flat buffer.
        self._halves = torch.tensor([0, kv_tokens * heads])
        self._heads = torch.arange(heads)

    def rows(self, offsets: Tensor, sizes: Tensor, positions: Tensor) -> Tensor:
        """Where tokens' keys and values go: [tokens, heads, 2] from each token's block and position, all [tokens]."""
        base = (offsets * self.heads + positions)[:, None] + sizes[:, None] * self._heads  # [tokens, heads]
        return base[:, :, None] + self._halves

    def write(self, layer: int, rows: Tensor, kv: Tensor) -> None:
        """Store keys and values of new tokens. kv: [tokens, heads, 2, head_dim]."""
        self._flat[layer].index_put_((rows,), kv)

    def read(self, layer: int, block: Block, length: int) -> tuple[Tensor, Tensor]:
        """A block's first keys and values, each [heads, length, head_dim], views."""
        keys, values = self._head_major(self.layers[layer], block)[:, :, :length]
        return keys, values

    def apply(self, changes: list[Change]) -> None:
        """Copy and clear keys and values, in order, in all layers."""
        for change in changes:
            for layer in self.layers:
                if isinstance(change, Clear):
                    assert isinstance(change.place, Block)
                    cleared = self._head_major(layer, change.place)
                    cleared[:, :, change.start : change.start + change.count] = 0
                    continue
                source, target = self._head_major(layer, change.source), self._head_major(layer, change.target)
                begin, end = change.source_start, change.target_start + change.count
                target[:, :, change.target_start : end] = source[:, :, begin : begin + change.count]

    def _head_major(self, layer: Tensor, block: Block) -> Tensor:
        """A block as [2, heads, size, head_dim], a view."""
        first = block.offset * self.heads
        rows = layer[:, first : first + self.heads * block.size]
        return rows.view(2, self.heads, block.size, self.head_dim)
