"""Attention over pages, as a step needs it: by Triton's kernels, or written out in torch, which they must agree with.

Both work on tables padded to one width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from workers.engine.kernels.attention import bias_of, weigh
from workers.engine.kv.paged import PAGE
from workers.engine.kv.pages import PageLayer

SCORES = 1 << 24
"""Scores that torch holds at once, of 4 bytes: a long chunk is attended some rows at a time."""


@dataclass(frozen=True, slots=True)
class Chunks:
    """The prompt chunks of a step, on the device and as the host knows them.

    tables: int32 [chunks, width]; spans: int32 [chunks, 3], the first row, the first position and the rows of each;
    ``known`` holds the same numbers.
    """

    tables: Tensor
    spans: Tensor
    known: list[tuple[int, int, int]]


class Attention(Protocol):
    """Attends rows whose keys and values lie in pages."""

    name: str
    is_static: bool
    """Whether a decode step may be captured as a graph."""
    reads_masked: bool
    """Whether what lies behind a row's length is read and masked: then it must be finite."""

    def decode(
        self, qkv: Tensor, pages: PageLayer, tables: Tensor, lengths: Tensor, slopes: Tensor, out: Tensor
    ) -> None:
        """Store each row's new key and value, and attend it.

        qkv: [rows, heads, 3, head_dim]; tables: int32 [rows, width]; lengths: int32 [rows], the new token included, at
        most width * PAGE; slopes: fp32 [heads]; out: [rows, heads, head_dim], written.
        """

    def store(self, qkv: Tensor, pages: PageLayer, page: Tensor, slot: Tensor) -> None:
        """Store the keys and values of chunks' rows. qkv: [rows, heads, 3, head_dim]; page, slot: int64 [rows]."""

    def prefill(self, qkv: Tensor, pages: PageLayer, chunks: Chunks, slopes: Tensor, out: Tensor) -> None:
        """Attend the chunks' rows, whose keys and values are in their pages already. Shapes as in ``decode``."""


class TorchAttention:
    """Gathers each row's pages. Implements ``Attention`` on any device."""

    name = "torch"
    is_static = False
    reads_masked = True

    def decode(
        self, qkv: Tensor, pages: PageLayer, tables: Tensor, lengths: Tensor, slopes: Tensor, out: Tensor
    ) -> None:
        """See ``Attention``."""
        rows, heads, _, head_dim = qkv.shape
        last = lengths.long() - 1  # [rows]
        page = tables.gather(1, (last // PAGE)[:, None])[:, 0].long()
        pages.write(page, last % PAGE, qkv[:, :, 1:])
        keys, values = _gathered(pages, tables, qkv.dtype)
        bias = bias_of(slopes, torch.arange(keys.shape[1], device=qkv.device), last)  # [rows, heads, length]
        scratch = qkv.new_empty(rows * heads, 1, head_dim)
        query = qkv[:, :, 0].reshape(rows * heads, 1, head_dim)
        weigh(query, keys, values, bias.view(rows * heads, 1, -1), 1.0 / math.sqrt(head_dim), scratch)
        out.copy_(scratch.view_as(out))

    def store(self, qkv: Tensor, pages: PageLayer, page: Tensor, slot: Tensor) -> None:
        """See ``Attention``."""
        pages.write(page, slot, qkv[:, :, 1:])

    def prefill(self, qkv: Tensor, pages: PageLayer, chunks: Chunks, slopes: Tensor, out: Tensor) -> None:
        """See ``Attention``."""
        _, heads, _, head_dim = qkv.shape
        for table, (first, start, count) in zip(chunks.tables, chunks.known, strict=True):
            end = start + count
            keys, values = _gathered(pages, table[None, : -(-end // PAGE)], qkv.dtype)
            keys, values = keys[:, :end], values[:, :end]
            known = torch.arange(end, device=qkv.device)
            at_once = max(1, SCORES // (heads * end))
            for begin in range(0, count, at_once):
                rows = slice(first + begin, first + min(count, begin + at_once))
                query = qkv[rows, :, 0].transpose(0, 1)  # [heads, rows, head_dim]
                bias = bias_of(slopes, known, known[start + begin : end][: query.shape[1]]).transpose(0, 1)
                scratch = torch.empty_like(query, memory_format=torch.contiguous_format)
                weigh(query, keys, values, bias, 1.0 / math.sqrt(head_dim), scratch)
                out[rows] = scratch.transpose(0, 1)


def _gathered(pages: PageLayer, tables: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values of each row's pages: [rows * heads, length, head_dim], copies."""
    both = pages.gather(tables.long(), dtype).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return both[0], both[1]
