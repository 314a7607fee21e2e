"""Attention with ALiBi over contiguous KV blocks, one sequence's rows at a time.

The bias is slope * (key - query), built in fp32 once a step and shared by all layers.
Source: ALiBi, Press et al. 2022, section 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workers.engine.kv.arena import Block
from workers.engine.kv.cache import KVCache


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


def attend_chunk(cache: KVCache, layer: int, block: Block, length: int, qkv: Tensor, out: Tensor, bias: Tensor) -> None:
    """Attend consecutive rows of a sequence, whose keys and values, the last of ``length``, are in the cache already.

    qkv: [count, heads, 3, head_dim]; out: [count, heads, head_dim], written; bias: [heads, count, length].
    """
    keys, values = cache.read(layer, block, length)
    query = qkv[:, :, 0].transpose(0, 1)  # [heads, count, head_dim]
    scratch = torch.empty(query.shape, dtype=query.dtype)
    weigh(query, keys, values, bias, 1.0 / math.sqrt(cache.head_dim), scratch)
    out.copy_(scratch.transpose(0, 1))


def weigh(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float, out: Tensor) -> None:
    """softmax(query @ keys.T * scale + bias) @ values, into ``out``.

    query, out: [batch, queries, head_dim]; keys, values: [batch, length, head_dim]
    bias: [batch, queries, length], fp32.
    """
    if query.dtype is torch.float32:
        scores = torch.baddbmm(bias, query, keys.transpose(1, 2), alpha=scale)
    else:
        scores = torch.bmm(query, keys.transpose(1, 2)).float().mul_(scale).add_(bias)
        # Half precision has infinite keys that no query of theirs noticed; masked, they must not make NaN of infinity.
        scores.masked_fill_(bias.isneginf(), -math.inf)
    torch.bmm(torch.softmax(scores, -1).to(query.dtype), values, out=out)
