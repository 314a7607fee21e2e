"""Whether a library computes what torch computes: a small random Bloom, asked once when the library is loaded.

A compiler's mistake or a wrong instruction set must cost speed, never right answers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from workers.engine.checkpoint import BloomConfig
from workers.engine.kernels.attention import alibi_slopes, bias_of
from workers.engine.native.library import Library
from workers.engine.native.stage import NativeStage
from workers.engine.weights import EMBEDDING, expected_shapes

ROWS = (1, 5, 16, 40, 130)
"""Rows of a step, below and above every block of the matrix product."""
_CONFIG = BloomConfig(vocab=131, hidden=96, layers=1, heads=4)
_BLOCK = 192
_LIMITS = {None: 1e-5, "int8": 2e-2}
"""Largest difference by the largest logit. int8: a number on the edge of two may be rounded either way."""


def mismatch(library: Library) -> str | None:
    """Say what differs from torch, or None. Takes some 20 ms."""
    weights = _RandomWeights(_CONFIG)
    for quantization, limit in _LIMITS.items():
        stage = NativeStage(
            weights, range(1), first=True, last=True, threads=2, quantization=quantization, library=library
        )
        worst = max(_difference(stage, weights, rows, quantization) for rows in ROWS)
        if not worst < limit:
            return f"{quantization or 'fp32'} logits differ from torch's by {worst:.1e}, more than {limit:.0e}"
    return None


class _Cache:
    """Two blocks of one layer."""

    def __init__(self) -> None:
        self.heads = _CONFIG.heads
        self.layers = [torch.zeros(2, 2 * _BLOCK * _CONFIG.heads, _CONFIG.head_dim)]


class _RandomWeights:
    """What a stage takes of ``Weights``, made up."""

    dtype = torch.float32
    has_head = False

    def __init__(self, config: BloomConfig) -> None:
        generator = torch.Generator().manual_seed(0)
        self.config = config
        self.tensors = {
            name: torch.randn(shape, generator=generator) / math.sqrt(shape[-1])
            for name, shape in expected_shapes(config).items()
        }

    def take(self, name: str) -> Tensor:
        return self.tensors[name]


def _difference(stage: NativeStage, weights: _RandomWeights, rows: int, quantization: str | None) -> float:
    """A prompt of so many rows, then its next token beside a chunk of another prompt; the worst of both steps."""
    cache = _Cache()
    ids = torch.arange(rows + 8) * 37 % _CONFIG.vocab
    first, second = ids[: rows + 1], ids[rows + 1 :]
    got = [
        stage.forward(first[:-1], torch.tensor([[0, _BLOCK, 0, rows]]), torch.arange(rows), cache),
        stage.forward(ids[rows:], torch.tensor([[0, _BLOCK, rows, 1], [_BLOCK, _BLOCK, 0, 7]]), torch.arange(8), cache),
    ]
    wanted = torch.cat([_logits(weights, part, quantization) for part in (first, second)])
    return float((torch.cat(got) - wanted).abs().max() / wanted.abs().max())


def _logits(weights: _RandomWeights, ids: Tensor, quantization: str | None) -> Tensor:
    """A Bloom of one block written out: [tokens, vocab] for the tokens of one sequence."""
    heads, head_dim, hidden = _CONFIG.heads, _CONFIG.head_dim, _CONFIG.hidden

    def norm(name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, (hidden,), weights.take(f"{name}.weight"), weights.take(f"{name}.bias"))

    def linear(name: str, x: Tensor, bias: Tensor | None = None) -> Tensor:
        weight = weights.take(f"{name}.weight")
        if quantization:
            x, weight = _rounded(x), _rounded(weight)
        return functional.linear(x, weight, bias)

    def affine(name: str, x: Tensor) -> Tensor:
        return linear(f"h.0.{name}", x, weights.take(f"h.0.{name}.bias"))

    x = norm("word_embeddings_layernorm", weights.take(EMBEDDING)[ids])  # [tokens, hidden]
    qkv = affine("self_attention.query_key_value", norm("h.0.input_layernorm", x))
    query, key, value = qkv.view(-1, heads, 3, head_dim).permute(2, 1, 0, 3)  # [heads, tokens, head_dim] each
    positions = torch.arange(len(ids))
    bias = bias_of(alibi_slopes(heads), positions, positions).transpose(0, 1)
    scores = query @ key.transpose(1, 2) / math.sqrt(head_dim) + bias  # [heads, tokens, tokens]
    context = (scores.softmax(-1) @ value).transpose(0, 1).reshape(-1, hidden)
    x = x + affine("self_attention.dense", context)
    wide = affine("mlp.dense_h_to_4h", norm("h.0.post_attention_layernorm", x))
    x = x + affine("mlp.dense_4h_to_h", functional.gelu(wide, approximate="tanh"))
    return linear(EMBEDDING.removesuffix(".weight"), norm("ln_f", x))


def _rounded(rows: Tensor) -> Tensor:
    """The rows as int8 holds them: each in 127ths of its largest number."""
    scale = rows.abs().amax(-1, keepdim=True) / 127
    return torch.round(rows / scale) * scale
