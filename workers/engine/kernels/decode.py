"""Attention with ALiBi of all decode rows at once, in fp32: each over its own keys, wherever these lie.

Scores are a product sampled at the places of a sparse matrix, a row's keys; contexts are weighted bags of values. The
operators are made for graphs and for embeddings: for all rows in one call they read keys and values where they lie, at
the memory's speed, which batched products of one query each don't reach. Only the softmax between them wants rows of
one length, so these are sorted by length into groups, and padded.
"""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.kernels.attention import alibi_slopes, attend_chunk, bias_of
from workers.engine.kernels.grouping import group_rows
from workers.engine.kv.arena import MIN_BLOCK, Block
from workers.engine.kv.cache import KVCache

LENGTH_STEP = 32
"""Key lengths are rounded up to this, so that a grouping holds for many steps."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows of one length, among the sorted ones; its part of the flat buffers, each [rows, heads, length]."""

    rows: slice
    bias: Tensor
    scores: Tensor
    shares: Tensor


class DecodeRows:
    """Attention of decode rows, prepared for a set of blocks and good until a row outgrows what it is padded to."""

    def __init__(self, cache: KVCache, blocks: list[Block], lengths: list[int], slopes: Tensor) -> None:
        """Row i of a step is the sequence that holds ``blocks[i]``, with ``lengths[i]`` keys. slopes: [heads]."""
        padded = [-(-length // LENGTH_STEP) * LENGTH_STEP for length in lengths]
        order = sorted(range(len(blocks)), key=padded.__getitem__)
        self._cache, self._slopes = cache, slopes
        self._blocks, self._limits = blocks, padded
        self._order = torch.tensor(order)

        cuts = group_rows([padded[row] for row in order])
        for first, last in cuts:
            for row in order[first:last]:
                padded[row] = padded[order[last - 1]]
        sizes = torch.tensor([padded[row] for row in order]).repeat_interleave(cache.heads)
        # Where the places of each row's each head begin in the flat buffers, and where the last ones end.
        self._bounds = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])  # [rows * heads + 1]
        self._bias, self._scores, self._shares = torch.empty(3, int(self._bounds[-1])).unbind()
        self._groups = [self._group(slice(first, last)) for first, last in cuts]

        held = torch.tensor([(blocks[row].offset, blocks[row].size) for row in order])
        self._places = torch.cat([_places(held[group.rows], group.bias.shape) for group in self._groups])
        self._sampled = torch.sparse_csr_tensor(
            self._bounds, self._places, self._scores, (len(sizes), cache.layers[0].shape[1]), check_invariants=False
        )

    def fits(self, blocks: list[Block], lengths: list[int]) -> bool:
        """Whether the same blocks decode and none has outgrown what it is padded to."""
        return blocks == self._blocks and all(map(int.__le__, lengths, self._limits))

    def begin(self, positions: Tensor) -> None:
        """Build the step's bias. positions: [rows], where each row's new token stands."""
        positions = positions[self._order]
        for group in self._groups:
            group.bias.copy_(bias_of(self._slopes, torch.arange(group.bias.shape[2]), positions[group.rows]))

    def attend(self, layer: int, qkv: Tensor, out: Tensor) -> None:
        """Attend all decode rows. qkv: [rows, heads, 3, head_dim]; out: [rows, heads, head_dim], written."""
        rows, head_dim = len(self._blocks), self._cache.head_dim
        keys, values = self._cache.layers[layer]  # [tokens * heads, head_dim] each
        queries = qkv[:rows, :, 0].index_select(0, self._order).view(-1, head_dim)
        self._scores.copy_(self._bias)
        torch.sparse.sampled_addmm(self._sampled, queries, keys.t(), alpha=1.0 / math.sqrt(head_dim), out=self._sampled)
        for group in self._groups:
            torch.softmax(group.scores, -1, out=group.shares)
        contexts, *_ = torch.embedding_bag(
            values, self._places, self._bounds, per_sample_weights=self._shares, include_last_offset=True
        )
        out[:rows].index_copy_(0, self._order, contexts.view(rows, -1, head_dim))

    def _group(self, rows: slice) -> _Group:
        heads = self._cache.heads
        begin, end = self._bounds[rows.start * heads], self._bounds[rows.stop * heads]
        shape = (rows.stop - rows.start, heads, -1)
        return _Group(rows, *(flat[begin:end].view(shape) for flat in (self._bias, self._scores, self._shares)))


def _places(held: Tensor, shape: torch.Size) -> Tensor:
    """The rows of a layer's keys that a group reads, flat; beyond its block a row reads its last key, which is masked.

    held: [rows, 2], each row's block as offset and size.  shape: [rows, heads, length].
    """
    _, heads, length = shape
    offsets, sizes = held[:, :1], held[:, 1:]
    firsts = offsets * heads + sizes * torch.arange(heads)  # [rows, heads]
    within = torch.arange(length).minimum(sizes - 1)  # [rows, length]
    return (firsts[:, :, None] + within[:, None]).view(-1)


@functools.cache
def decodes_at_once() -> bool:
    """Whether torch's operators give here what attention row by row gives."""
    generator = torch.Generator().manual_seed(0)
    heads, head_dim, lengths = 2, 16, [3, 40]
    cache = KVCache(1, heads, head_dim, 2 * MIN_BLOCK, torch.float32)
    cache.layers[0].normal_(generator=generator)
    blocks, slopes = [Block(MIN_BLOCK, MIN_BLOCK), Block(0, MIN_BLOCK)], alibi_slopes(heads)
    qkv = torch.randn(2, heads, 3, head_dim, generator=generator)
    found, wanted = torch.zeros(2, 2, heads, head_dim).unbind()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says once that sparse rows are a beta
            rows = DecodeRows(cache, blocks, lengths, slopes)
            rows.begin(torch.tensor(lengths) - 1)
            rows.attend(0, qkv, found)
    except (RuntimeError, AttributeError, NotImplementedError):  # this build of torch lacks one
        return False
    for row, (block, length) in enumerate(zip(blocks, lengths, strict=True)):
        bias = bias_of(slopes, torch.arange(length), torch.tensor([length - 1])).transpose(0, 1)
        attend_chunk(cache, 0, block, length, qkv[row : row + 1], wanted[row : row + 1], bias)
    return torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)
