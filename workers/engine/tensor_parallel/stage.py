"""A rank's part of the forward pass of a Bloom: its heads, its inner features, its part of the vocabulary.

Every rank holds the whole hidden state; two sums a block, one for the embedding and one gathering of logits make it so.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from workers.engine.batch import Batch
from workers.engine.blocks import read_blocks, read_norm, run_blocks
from workers.engine.kernels.linear import Linear
from workers.engine.stage import WARM_ROWS
from workers.engine.tensor_parallel.cut import Rank
from workers.engine.tensor_parallel.group import Group
from workers.engine.weights import EMBEDDING, HEAD, Weights


class SummedLinear:
    """A linear layer of which each rank holds the inputs that it has. bias: whole, added once, after the sum."""

    def __init__(self, weight: Tensor, bias: Tensor, group: Group) -> None:
        self.part = Linear(weight, None)
        self._bias = bias
        self._group = group

    def apply_add(self, x: Tensor, residual: Tensor) -> Tensor:
        """x: [rows, this rank's inputs]; residual: [rows, out].  Returns [rows, out], the same at every rank."""
        return self._group.sum(self.part.apply(x)).add_(self._bias).add_(residual)


class RankStage:
    """All blocks, embedding and head of a Bloom, as far as they are one rank's."""

    def __init__(self, weights: Weights, rank: Rank, group: Group) -> None:
        """Read and pack this rank's parts, and nothing else of the tensors. Raises ModelRefused for damaged ones."""
        config = self.config = weights.config
        self._dtype = weights.dtype
        self._group = group
        self._begun = 0
        self._heads = len(rank.share(config.heads))
        self._vocab = rank.share(config.vocab)
        self._widths = [len(Rank(number, rank.count).share(config.vocab)) for number in range(rank.count)]

        def take(name: str) -> Tensor:
            return weights.take(name, rank.part(name, weights.shape(name)))

        eps = config.norm_eps
        self.embedding = take(EMBEDDING)  # [this rank's tokens, hidden]
        self.embedding_norm = read_norm(take, "word_embeddings_layernorm", eps)
        # QKV and up give this rank's heads and features, dense and down take them.
        self.blocks = read_blocks(take, range(config.layers), eps, Linear, partial(SummedLinear, group=group))
        self.final_norm = read_norm(take, "ln_f", eps)
        self.head = Linear(take(HEAD) if weights.has_head else self.embedding, None)

    def warm_up(self, rows: int) -> None:
        """Run every kind of layer at 1 to ``rows`` rows, as ``Stage.warm_up`` does; sums nothing."""
        config, block = self.config, self.blocks[0]
        for count in range(1, min(rows, WARM_ROWS) + 1):
            x = torch.zeros(count, config.hidden, dtype=self._dtype)
            block.qkv.apply(x)
            block.dense.part.apply(torch.zeros(count, self._heads * config.head_dim, dtype=self._dtype))
            block.down.part.apply(block.up.apply_gelu(x))
            self.head.apply(x)

    def forward(self, batch: Batch) -> Tensor | None:
        """Compute a batch with the other ranks, and store this rank's keys and values.

        Returns fp32 logits [sampled, vocab] at rank 0, None at the others.
        """
        self._begun = self._group.exchanges
        x = run_blocks(self.blocks, self.config, self._heads, batch, self._embed(batch.ids))
        return self._logits(self.final_norm(x[batch.sampled]))

    def stand_in(self, batch: Batch) -> None:
        """Take this rank's part in what is left of a ``forward`` that it could not go on with, with zeros.

        The others wait for it in a sum; what they get is worth nothing.
        """
        zeros = torch.zeros(len(batch.ids), self.config.hidden, dtype=self._dtype, device=batch.ids.device)
        sums = 1 + 2 * len(self.blocks)
        while self._group.exchanges - self._begun < sums:
            self._group.sum(zeros.zero_())
        if self._group.exchanges - self._begun == sums:
            self._group.gather(
                zeros.new_zeros(len(batch.sampled), max(self._widths), dtype=torch.float32), self._widths
            )

    def _embed(self, ids: Tensor) -> Tensor:
        """Each token's row comes from the rank that holds it; the others add zeros, so the sum is exact."""
        mine = ids - self._vocab.start
        elsewhere = (mine < 0) | (mine >= len(self._vocab))
        rows = functional.embedding(mine.masked_fill(elsewhere, 0), self.embedding)
        return self.embedding_norm(self._group.sum(rows.masked_fill_(elsewhere[:, None], 0)))

    def _logits(self, x: Tensor) -> Tensor | None:
        """x: [sampled, hidden].  Returns [sampled, vocab] at rank 0."""
        logits = self.head.apply(x).float()  # [sampled, this rank's tokens]
        short = max(self._widths) - logits.shape[1]
        return self._group.gather(functional.pad(logits, (0, short)) if short else logits, self._widths)
