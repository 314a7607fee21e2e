"""The forward pass of a run of Bloom blocks over flat tokens, decode rows and prompt chunks mixed.

Owns the packed weights. ``blocks`` has the order of operations; what the tokens are and where their keys go, ``batch``
says.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from workers.engine.batch import Batch
from workers.engine.blocks import Norm, read_blocks, read_norm, run_blocks
from workers.engine.checkpoint import BloomConfig
from workers.engine.kernels.linear import Linear
from workers.engine.weights import EMBEDDING, HEAD, WeightSource

WARM_ROWS = 32


class Stage:
    """A run of a Bloom's blocks on one device; the first one with the embedding, the last one with the head."""

    def __init__(
        self, weights: WeightSource, layers: range, *, first: bool, last: bool, quantization: str | None = None
    ) -> None:
        """Read and pack the weights of these layers only. Raises ModelRefused for damaged tensors."""
        config = weights.config
        self.config: BloomConfig = config
        self.dtype = weights.dtype
        self.embedding: Tensor | None = None  # [vocab, hidden]
        self.embedding_norm: Norm | None = None
        if first:
            self.embedding = weights.take(EMBEDDING)
            self.embedding_norm = read_norm(weights.take, "word_embeddings_layernorm", config.norm_eps)
        packed = partial(Linear, quantization=quantization)
        self.blocks = read_blocks(weights.take, layers, config.norm_eps, packed, packed)
        self.final_norm: Norm | None = None
        self.head: Linear | None = None
        if last:
            self.final_norm = read_norm(weights.take, "ln_f", config.norm_eps)
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
            x = torch.zeros(count, self.config.hidden, dtype=self.dtype)
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
        x = self._embed(batch.ids) if hidden is None else hidden  # [tokens, hidden]
        x = run_blocks(self.blocks, self.config, self.config.heads, batch, x)
        if self.head is None or self.final_norm is None:
            return x
        return self.head.apply(self.final_norm(x[batch.sampled])).float()

    def _embed(self, ids: Tensor) -> Tensor:
        assert self.embedding is not None
        assert self.embedding_norm is not None
        return self.embedding_norm(functional.embedding(ids, self.embedding))
