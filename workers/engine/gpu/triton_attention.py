"""Attention over pages by the Triton kernels. Imports Triton, which comes with torch's CUDA builds alone."""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from workers.engine.gpu.attention import Chunks
from workers.engine.gpu.eight_bit_kernels import store_kernel
from workers.engine.gpu.kernels import combine_kernel, decode_kernel, prefill_kernel
from workers.engine.kv.paged import PAGE
from workers.engine.kv.pages import PageLayer

SPLIT = 256
"""Keys of one decode program. It is the same at every batch size, so that no row's sums follow its neighbours."""
BLOCK = 32
"""Keys at a time, of decode rows and of chunks."""
QUERIES = 64
"""Rows of a chunk in one program."""


class TritonAttention:
    """Implements ``attention.Attention``."""

    name = "triton"
    is_static = True
    reads_masked = False

    def __init__(self, converts_fp8: bool = False) -> None:
        """converts_fp8: the device has instructions for floats of 8 bits, as those of capability 8.9 and above have."""
        self._converts_fp8 = converts_fp8

    def decode(
        self, qkv: Tensor, pages: PageLayer, tables: Tensor, lengths: Tensor, slopes: Tensor, out: Tensor
    ) -> None:
        """See ``Attention``. The grid follows the tables' width, not the lengths, so that a graph may hold it."""
        rows, heads, _, head_dim = qkv.shape
        splits = -(-tables.shape[1] * PAGE // SPLIT)
        parts = torch.empty(rows, heads, splits, head_dim, dtype=torch.float32, device=qkv.device)
        weights = torch.empty(rows, heads, splits, 2, dtype=torch.float32, device=qkv.device)
        decode_kernel[(rows, heads, splits)](
            qkv,
            pages.numbers,
            pages.scales,
            tables,
            lengths,
            slopes,
            parts,
            weights,
            1.0 / math.sqrt(head_dim),
            tables.stride(0),
            lengths.stride(0),
            pages.numbers.stride(0),
            HEADS=heads,
            HEAD_DIM=head_dim,
            WIDTH=_width(head_dim),
            PAGE=PAGE,
            SPLIT=SPLIT,
            BLOCK=BLOCK,
            CONVERTS_FP8=self._converts_fp8,
        )
        combine_kernel[(rows * heads,)](
            parts,
            weights,
            out,
            splits,
            HEAD_DIM=head_dim,
            WIDTH=_width(head_dim),
            SPLITS=triton.next_power_of_2(splits),
        )

    def store(self, qkv: Tensor, pages: PageLayer, page: Tensor, slot: Tensor) -> None:
        """See ``Attention``. What needs no rounding torch stores in one operation."""
        if pages.scales is None:
            pages.write(page, slot, qkv[:, :, 1:])
            return
        rows, heads, _, head_dim = qkv.shape
        store_kernel[(rows, heads, 2)](
            qkv,
            pages.numbers,
            pages.scales,
            page,
            slot,
            pages.numbers.stride(0),
            HEADS=heads,
            HEAD_DIM=head_dim,
            WIDTH=_width(head_dim),
            PAGE=PAGE,
            num_warps=1,  # a row of one head is all that a program has
        )

    def prefill(self, qkv: Tensor, pages: PageLayer, chunks: Chunks, slopes: Tensor, out: Tensor) -> None:
        """See ``Attention``. No scores or biases are held in memory."""
        _, heads, _, head_dim = qkv.shape
        tiles = triton.cdiv(max(count for _, _, count in chunks.known), QUERIES)
        prefill_kernel[(tiles, heads, len(chunks.known))](
            qkv,
            pages.numbers,
            pages.scales,
            chunks.tables,
            chunks.spans,
            slopes,
            out,
            1.0 / math.sqrt(head_dim),
            chunks.tables.stride(0),
            pages.numbers.stride(0),
            HEADS=heads,
            HEAD_DIM=head_dim,
            WIDTH=_width(head_dim),
            PAGE=PAGE,
            QUERIES=QUERIES,
            BLOCK=BLOCK,
            CONVERTS_FP8=self._converts_fp8,
        )


def _width(head_dim: int) -> int:
    """A power of two that holds a head, and that tl.dot takes."""
    return max(16, int(triton.next_power_of_2(head_dim)))
