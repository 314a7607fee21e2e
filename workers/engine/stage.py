"""The forward pass of a run of Bloom blocks over flat tokens, decode rows and prompt chunks mixed.

Owns the packed weights and the order of operations. What the tokens are and where their keys go, ``batch`` says.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from workers.engine.batch import Batch
from workers.engine.checkpoint import BloomConfig
from workers.engine.kernels.linear import Linear
from workers.engine.weights import EMBEDDING, HEAD, WeightSource

WARM_ROWS = 32


@dataclass(frozen=True, slots=True)
class Norm:
    """Layer normalisation over the last dimension. weight, bias: [hidden]."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class Block:
    """One Bloom block's weights."""

    attention_norm: Norm
    qkv: Linear
    dense: Linear
    mlp_norm: Norm
    up: Linear
    down: Linear


class Stage:
    """A run of a Bloom's blocks on one device; the first one with the embedding, the last one with the head."""

    def __init__(
        self, weights: WeightSource, layers: range, *, first: bool, last: bool, quantization: str | None = None
    ) -> None:
        """Read and pack the weights of these layers only. Raises ModelRefused for damaged tensors."""
        config = weights.config
        self.config: BloomConfig = config
        self._dtype = weights.dtype

        def norm(name: str) -> Norm:
            return Norm(weights.take(f"{name}.weight"), weights.take(f"{name}.bias"), config.norm_eps)

        def linear(name: str) -> Linear:
            return Linear(weights.take(f"{name}.weight"), weights.take(f"{name}.bias"), quantization=quantization)

        self.embedding: Tensor | None = None  # [vocab, hidden]
        self.embedding_norm: Norm | None = None
        if first:
            self.embedding, self.embedding_norm = weights.take(EMBEDDING), norm("word_embeddings_layernorm")
        self.blocks = [
            Block(
                attention_norm=norm(f"h.{i}.input_layernorm"),
                qkv=linear(f"h.{i}.self_attention.query_key_value"),
                dense=linear(f"h.{i}.self_attention.dense"),
                mlp_norm=norm(f"h.{i}.post_attention_layernorm"),
                up=linear(f"h.{i}.mlp.dense_h_to_4h"),
                down=linear(f"h.{i}.mlp.dense_4h_to_h"),
            )
            for i in layers
        ]
        self.final_norm: Norm | None = None
        self.head: Linear | None = None
        if last:
            self.final_norm = norm("ln_f")
            self.head = Linear(self._head_weight(weights), None, quantization=quantization)

    def _head_weight(self, weights: WeightSource) -> Tensor:
        """The head's own weight, or the embedding's where both are one. [vocab, hidden]."""
        if weights.has_head:
            return weights.take(HEAD)
        return self.embedding if self.embedding is not None else weights.take(EMBEDDING)

    def warm_up(self, rows: int) -> None:
        """Run every kind of layer at 1 to ``rows`` rows: a new row count costs oneDNN 0.6 ms per layer shape, once.

        Not beyond WARM_ROWS: there it is little beside the step, and a large head would take minutes.
        """
        for count in range(1, min(rows, WARM_ROWS) + 1):
            x = torch.zeros(count, self.config.hidden, dtype=self._dtype)
            for block in self.blocks[:1]:
                block.qkv.apply(x)
                block.down.apply_add(block.up.apply_gelu(block.dense.apply_add(x, x)), x)
            if self.head is not None:
                self.head.apply(x)

    def forward(self, batch: Batch, hidden: Tensor | None) -> Tensor:
        """Compute a batch and store its keys and values.

        hidden: [tokens, hidden] from the stage before, None for the first.
        Returns [tokens, hidden], or fp32 logits [sampled, vocab] if the stage has the head.
        """
        config = self.config
        x = self._embed(batch.ids) if hidden is None else hidden  # [tokens, hidden]
        context = torch.zeros_like(x)
        heads = context.view(-1, config.heads, config.head_dim)  # [tokens, heads, head_dim]
        for layer, block in enumerate(self.blocks):
            normed = block.attention_norm(x)
            qkv = block.qkv.apply(normed).view(-1, config.heads, 3, config.head_dim)  # [tokens, heads, 3, head_dim]
            batch.attend(layer, qkv, heads)
            x = block.dense.apply_add(context, normed if config.residual_post_norm else x)
            normed = block.mlp_norm(x)
            x = block.down.apply_add(block.up.apply_gelu(normed), normed if config.residual_post_norm else x)
        if self.head is None or self.final_norm is None:
            return x
        return self.head.apply(self.final_norm(x[batch.sampled])).float()

    def _embed(self, ids: Tensor) -> Tensor:
        assert self.embedding is not None
        assert self.embedding_norm is not None
        return self.embedding_norm(functional.embedding(ids, self.embedding))
