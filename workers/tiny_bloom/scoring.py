"""How well a model predicts text: nats per token for a causal model and for the bigram model it must beat.

Both score the same tokens: every token of a story but its first, and the end token.  Must never train a neural model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from transformers import BloomForCausalLM

IGNORED = -100
"""The label of padding: cross_entropy leaves it out."""


@dataclass(frozen=True)
class Bigram:
    """An add-k smoothed bigram model."""

    pairs: Counter[tuple[int, int]]
    firsts: Counter[int]
    vocab_size: int
    k: float

    @classmethod
    def fit(cls, rows: Iterable[Sequence[int]], vocab_size: int, k: float = 0.05) -> Bigram:
        """Count the pairs of neighbours in the rows.

        k: added to every count; 0.05 because larger values cost the bigram model more than they save on this text.
        """
        pairs: Counter[tuple[int, int]] = Counter()
        for row in rows:
            pairs.update(pairwise(row))
        firsts: Counter[int] = Counter()
        for (first, _), count in pairs.items():
            firsts[first] += count
        return cls(pairs, firsts, vocab_size, k)

    def nats_per_token(self, rows: Iterable[Sequence[int]]) -> float:
        """Return the mean loss over every pair of neighbours in the rows."""
        losses = [
            -math.log((self.pairs[pair] + self.k) / (self.firsts[pair[0]] + self.k * self.vocab_size))
            for row in rows
            for pair in pairwise(row)
        ]
        return math.fsum(losses) / len(losses)


def pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows padded on the right, and their labels.  Both [rows, longest], int64."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[*row, *[pad_id] * (longest - len(row))] for row in rows])
    labels = torch.tensor([[*row, *[IGNORED] * (longest - len(row))] for row in rows])
    return tokens, labels


def nats_per_token(model: BloomForCausalLM, rows: Sequence[Sequence[int]], batch_rows: int = 64) -> float:
    """Return the model's mean loss over every token of the rows but each row's first."""
    total, count = 0.0, 0
    # Rows of like length share a batch, so that little padding is computed.
    by_length = sorted(rows, key=len)
    for start in range(0, len(by_length), batch_rows):
        tokens, labels = pad(by_length[start : start + batch_rows], pad_id=0)
        with torch.inference_mode():
            logits = model(tokens).logits[:, :-1].float()  # [rows, longest - 1, vocab]
        targets = labels[:, 1:].flatten()
        total += cross_entropy(logits.flatten(0, 1), targets, ignore_index=IGNORED, reduction="sum").item()
        count += int((targets != IGNORED).sum())
    return total / count
