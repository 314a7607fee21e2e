"""Attention with ALiBi over contiguous KV blocks: decode rows in groups of neighbours, prompt chunks one by one.

The bias is slope * (key - query), built in fp32 once a step and shared by all layers.
Source: ALiBi, Press et al. 2022, section 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workers.engine.kernels.grouping import group_rows
from workers.engine.kv.arena import Block
from workers.engine.kv.cache import KVCache

LENGTH_STEP = 32
"""Key lengths are rounded up to this, so that a grouping holds for many steps."""


def alibi_slopes(heads: int) -> Tensor:
    """The slope of each head, fp32 [heads]: powers of 2^(-8/p), p the power of two at or below ``heads``.

    The remaining heads of a count that is no power of two take odd powers of 2^(-4/p). Rounded as transformers rounds.
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = torch.tensor(2.0 ** (-8 / power)).pow(torch.arange(1, power + 1, dtype=torch.int32))
    odd = 2 * torch.arange(heads - power, dtype=torch.int32) + 1
    return torch.cat([slopes, torch.tensor(2.0 ** (-4 / power)).pow(odd)])


def bias_of(slopes: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
    """slope * (key - query), and -inf where a key lies after its query.

    slopes: [heads]; keys: [length] positions; queries: [...] positions.  Returns fp32 [..., heads, length].
    """
    distance = (keys - queries[..., None]).float()  # [..., length]
    distance.masked_fill_(distance > 0, -math.inf)
    return slopes[:, None] * distance[..., None, :]


class DecodeGroups:
    """Attention of decode rows, prepared for a set of blocks and good until one outgrows its group's length.

    Row i of a step must be the sequence that holds ``blocks[i]``; the blocks are sorted.
    """

    def __init__(self, cache: KVCache, blocks: list[Block], lengths: list[int], slopes: Tensor) -> None:
        self.blocks = blocks
        self._cache = cache
        self._slopes = slopes
        self._groups = [
            _Group(cache, blocks[first:last], first, max(lengths[first:last]))
            for first, last in group_rows(blocks, lengths)
        ]
        self._limits = [group.length for group in self._groups for _ in range(group.rows)]
        self._biases: list[Tensor] = []

    def fits(self, blocks: list[Block], lengths: list[int]) -> bool:
        """Whether the same blocks decode and none has outgrown its group."""
        return blocks == self.blocks and all(map(int.__le__, lengths, self._limits))

    def begin(self, positions: Tensor) -> None:
        """Build the step's bias. positions: [rows], where each row's new token stands."""
        self._biases = [group.bias(self._slopes, positions) for group in self._groups]

    def attend(self, layer: int, qkv: Tensor, out: Tensor) -> None:
        """Attend all decode rows. qkv: [rows, heads, 3, head_dim]; out: [rows, heads, head_dim], written."""
        for group, bias in zip(self._groups, self._biases, strict=True):
            group.attend(layer, qkv, out, bias)


class _Group:
    """Rows whose blocks lie between the first and the last of them, free ones in between computed in vain."""

    def __init__(self, cache: KVCache, blocks: list[Block], first_row: int, length: int) -> None:
        size = blocks[0].size
        places = [(block.offset - blocks[0].offset) // size for block in blocks]
        self.first = first_row
        self.rows = len(blocks)
        self.places = places[-1] + 1
        self.length = min(size, -(-length // LENGTH_STEP) * LENGTH_STEP)
        # Which row each place computes, and which place each row takes: only needed with free blocks in between.
        self.row_of: Tensor | None = None
        self.place_of: Tensor | None = None
        if self.places > self.rows:
            row_of = [0] * self.places
            for row, place in enumerate(places):
                row_of[place] = row
            self.row_of, self.place_of = torch.tensor(row_of), torch.tensor(places)
        self._keys = torch.arange(self.length)
        self._views = [cache.read(layer, blocks[0], self.places, self.length) for layer in range(len(cache.layers))]
        self._scale = 1.0 / math.sqrt(cache.head_dim)

    def bias(self, slopes: Tensor, positions: Tensor) -> Tensor:
        """[places * heads, 1, length] in fp32."""
        mine = positions[self.first : self.first + self.rows]
        if self.row_of is not None:
            mine = mine[self.row_of]
        return bias_of(slopes, self._keys, mine).view(-1, 1, self.length)

    def attend(self, layer: int, qkv: Tensor, out: Tensor, bias: Tensor) -> None:
        _, heads, _, head_dim = qkv.shape
        keys, values = self._views[layer]
        query = qkv[self.first : self.first + self.rows, :, 0]  # [rows, heads, head_dim]
        target = out[self.first : self.first + self.rows]
        if self.row_of is None:
            # One row of 3 * head_dim per head: batch strides merge, so nothing is copied.
            query = query.as_strided((self.rows * heads, 1, head_dim), (3 * head_dim, head_dim, 1))
            weigh(query, keys, values, bias, self._scale, target.view(-1, 1, head_dim))
            return
        query = query[self.row_of].view(-1, 1, head_dim)
        scratch = torch.empty_like(query)
        weigh(query, keys, values, bias, self._scale, scratch)
        target.copy_(scratch.view(self.places, heads, head_dim)[self.place_of])


def attend_chunk(cache: KVCache, layer: int, block: Block, length: int, qkv: Tensor, out: Tensor, bias: Tensor) -> None:
    """Attend one chunk of a prompt, whose keys and values, the last of ``length``, are in the cache already.

    qkv: [count, heads, 3, head_dim]; out: [count, heads, head_dim], written; bias: [heads, count, length].
    """
    keys, values = cache.read(layer, block, 1, length)
    query = qkv[:, :, 0].transpose(0, 1)  # [heads, count, head_dim]
    scratch = torch.empty(query.shape, dtype=query.dtype)
    weigh(query, keys, values, bias, 1.0 / math.sqrt(cache.head_dim), scratch)
    out.copy_(scratch.transpose(0, 1))


def weigh(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float, out: Tensor) -> None:
    """softmax(query @ keys.T * scale + bias) @ values, into ``out``.

    query, out: [batch, queries, head_dim]; keys, values: [batch, length, head_dim]
    bias: [batch, queries, length], fp32.
    """
    if query.dtype is torch.float32 and query.shape[1] == 1 and query.device.type == "cpu":
        # Keys times a column rather than a row times keys: MKL reads long keys a quarter faster.
        columns = torch.baddbmm(bias.transpose(1, 2), keys, query.transpose(1, 2), alpha=scale)
        scores = columns.transpose(1, 2)
    elif query.dtype is torch.float32:
        scores = torch.baddbmm(bias, query, keys.transpose(1, 2), alpha=scale)
    else:
        scores = torch.bmm(query, keys.transpose(1, 2)).float().mul_(scale).add_(bias)
        # Half precision has infinite keys that no query of theirs noticed; masked, they must not make NaN of infinity.
        scores.masked_fill_(bias.isneginf(), -math.inf)
    torch.bmm(torch.softmax(scores, -1).to(query.dtype), values, out=out)
