"""Bloom blocks: their layers read from a checkpoint, and the order in which they are computed.

Knows neither what the rows of a batch are nor whether a layer is whole or one rank's part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torch import Tensor
from torch.nn import functional

from workers.engine.batch import Batch
from workers.engine.checkpoint import BloomConfig
from workers.engine.kernels.linear import Linear


@dataclass(frozen=True, slots=True)
class Norm:
    """Layer normalisation over the last dimension. weight, bias: [hidden]."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Closing(Protocol):
    """A linear layer that ends a half of a block."""

    def apply_add(self, x: Tensor, residual: Tensor) -> Tensor:
        """x: [rows, in]; residual: [rows, out].  Returns [rows, out]."""


C = TypeVar("C", bound=Closing)


@dataclass(frozen=True, slots=True)
class Block(Generic[C]):
    """One Bloom block's weights."""

    attention_norm: Norm
    qkv: Linear
    dense: C
    mlp_norm: Norm
    up: Linear
    down: C


Take = Callable[[str], Tensor]
"""Reads a tensor by its name."""


def read_norm(take: Take, name: str, eps: float) -> Norm:
    """The norm of this name."""
    return Norm(take(f"{name}.weight"), take(f"{name}.bias"), eps)


def read_blocks(
    take: Take,
    layers: range,
    eps: float,
    opening: Callable[[Tensor, Tensor], Linear],
    closing: Callable[[Tensor, Tensor], C],
) -> list[Block[C]]:
    """Read and pack these layers, one after the other. opening, closing: pack a weight and a bias."""

    def both(name: str) -> tuple[Tensor, Tensor]:
        return take(f"{name}.weight"), take(f"{name}.bias")

    return [
        Block(
            attention_norm=read_norm(take, f"h.{i}.input_layernorm", eps),
            qkv=opening(*both(f"h.{i}.self_attention.query_key_value")),
            dense=closing(*both(f"h.{i}.self_attention.dense")),
            mlp_norm=read_norm(take, f"h.{i}.post_attention_layernorm", eps),
            up=opening(*both(f"h.{i}.mlp.dense_h_to_4h")),
            down=closing(*both(f"h.{i}.mlp.dense_4h_to_h")),
        )
        for i in layers
    ]


def run_blocks(blocks: list[Block[C]], config: BloomConfig, heads: int, batch: Batch, x: Tensor) -> Tensor:
    """Compute a batch through these blocks, and store its keys and values.

    heads: how many of the model's the blocks have.  x: [tokens, hidden].  Returns the same shape.
    """
    context = x.new_zeros(x.shape[0], heads * config.head_dim)
    attended = context.view(-1, heads, config.head_dim)
    for layer, block in enumerate(blocks):
        normed = block.attention_norm(x)
        qkv = block.qkv.apply(normed).view(-1, heads, 3, config.head_dim)  # [tokens, heads, 3, head_dim]
        batch.attend(layer, qkv, attended)
        x = block.dense.apply_add(context, normed if config.residual_post_norm else x)
        normed = block.mlp_norm(x)
        x = block.down.apply_add(block.up.apply_gelu(normed), normed if config.residual_post_norm else x)
    return x
