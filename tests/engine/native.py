"""A native stage over weights that are made up, and a cache that shows what was not stored."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.workload import random_weights
from workers.engine.checkpoint import BloomConfig
from workers.engine.native.stage import NativeStage

SHAPES = {
    "3 heads of 24": BloomConfig(vocab=515, hidden=72, layers=2, heads=3),
    "1 head of 40, explicit head": BloomConfig(vocab=300, hidden=40, layers=2, heads=1, tied=False),
    "8 heads of 8, post-norm residual": BloomConfig(vocab=129, hidden=64, layers=3, heads=8, residual_post_norm=True),
    "2 heads of 64": BloomConfig(vocab=331, hidden=128, layers=2, heads=2),
    "2 heads of 128": BloomConfig(vocab=260, hidden=256, layers=1, heads=2),
}
BLOCK = 256


@dataclass
class Made:
    """Weights made up, as ``Weights`` gives them out."""

    config: BloomConfig
    seed: int = 3
    dtype: torch.dtype = torch.float32
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tensors = random_weights(self.config, self.seed)

    @property
    def has_head(self) -> bool:
        return not self.config.tied

    def take(self, name: str) -> Tensor:
        return self.tensors[name]


@dataclass
class Memory:
    """A KV cache of blocks, filled with NaN: what was not stored must not be read."""

    config: BloomConfig
    blocks: int = 8
    layers_: range | None = None

    def __post_init__(self) -> None:
        self.heads = self.config.heads
        shape = (2, self.blocks * BLOCK * self.heads, self.config.head_dim)
        self.layers = [torch.full(shape, math.nan) for _ in self.layers_ or range(self.config.layers)]


def stage(
    weights: Made, layers: range | None = None, *, threads: int = 2, quantization: str | None = None
) -> NativeStage:
    whole = range(weights.config.layers)
    layers = whole if layers is None else layers
    return NativeStage(
        weights,
        layers,
        first=layers.start == 0,
        last=layers.stop == whole.stop,
        threads=threads,
        quantization=quantization,
    )


def spans(*rows: tuple[int, int, int]) -> Tensor:
    """(block, start, count) of each span, as a stage takes them."""
    return torch.tensor([(block * BLOCK, BLOCK, start, count) for block, start, count in rows], dtype=torch.int64)


def tokens(config: BloomConfig, count: int, seed: int = 0) -> Tensor:
    return torch.randint(config.vocab, (count,), generator=torch.Generator().manual_seed(seed))
