"""Draw tokens from logits: temperature, top-k, top-p, and one given number per row; the vocabulary is never sorted.

A draw inverts the distribution function over the kept tokens in the order of their ids: in the order of likelihood, a
rounding error could swap two near-equal ones. Knows no requests and no random state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

LEAST_TEMPERATURE = 1e-6
"""Below it fp32 can't divide by the temperature; the draw is greedy long before."""
MOST_CANDIDATES = 1024
"""A top_k up to this is cut from a short list of the likeliest; a larger one by its least logit."""
NUCLEUS_CANDIDATES = 256
"""The short list tried for top_p: it holds the nucleus of all but flat distributions."""
CHUNK = 64
"""Logits are summed and searched in chunks of so many."""
_BISECTIONS = 32


@dataclass(frozen=True, slots=True)
class Cut:
    """What to keep of a row: the ``top_k`` likeliest (0: all), of those the fewest that reach ``top_p``."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0


def draw(logits: Tensor, cuts: list[Cut], points: list[float]) -> list[int]:
    """Draw one token per row. logits: fp32 [rows, vocab], finite at its highest; points: a number in (0, 1) per row."""
    vocab = logits.shape[1]
    logits = logits - logits.max(-1, keepdim=True).values  # the likeliest token is at 0
    logits /= torch.tensor([max(cut.temperature, LEAST_TEMPERATURE) for cut in cuts])[:, None]
    tokens = [0] * len(cuts)
    short = [row for row, cut in enumerate(cuts) if 0 < cut.top_k <= min(MOST_CANDIDATES, vocab - 1) or cut.top_p < 1]
    whole = sorted({*range(len(cuts))}.difference(short))
    if short:
        drawn, left = _draw_short(logits[short], [cuts[row] for row in short], [points[row] for row in short])
        for row, token in zip(short, drawn, strict=True):
            tokens[row] = token
        whole += [short[i] for i in left]
    for row in whole:
        _cut_whole(logits[row], cuts[row])
    if whole:
        for row, token in zip(whole, _draw_whole(logits[whole], [points[row] for row in whole]), strict=True):
            tokens[row] = token
    return tokens


def top(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` highest logits of each row, falling, and their ids: both [rows, count].

    They lie in the ``count`` chunks of highest maximum, so that only those are searched: 5 times faster at 250,880.
    """
    rows, vocab = logits.shape
    if vocab < 4 * count * CHUNK:
        best = logits.topk(count)
        return best.values, best.indices
    chunks = _chunks(logits)  # [rows, chunks, CHUNK]
    nearest = chunks.amax(-1).topk(count, sorted=False).indices  # [rows, count]
    best = chunks.gather(1, nearest[:, :, None].expand(-1, -1, CHUNK)).view(rows, -1).topk(count)
    return best.values, nearest.gather(1, best.indices // CHUNK) * CHUNK + best.indices % CHUNK


def _draw_short(logits: Tensor, cuts: list[Cut], points: list[float]) -> tuple[list[int], list[int]]:
    """Draw from short lists of candidates; also returns the rows, by number, whose list did not hold all they keep."""
    vocab = logits.shape[1]
    # A row without a usable top_k gets all of the list, and its nucleus must lie within.
    ks = [cut.top_k if 0 < cut.top_k <= MOST_CANDIDATES else vocab for cut in cuts]
    count = min(vocab, max(NUCLEUS_CANDIDATES if k == vocab else k for k in ks))
    k, p = torch.tensor(ks), torch.tensor([cut.top_p for cut in cuts], dtype=torch.float64)
    values, ids = top(logits, count)
    weights = values.double().exp_().masked_fill_(torch.arange(count) >= k[:, None], 0.0)  # [rows, count]
    total = weights.sum(-1)
    open_rows = [row for row, cut in enumerate(cuts) if ks[row] == vocab]
    if open_rows:
        total[open_rows] = logits[open_rows].exp_().sum(-1, dtype=torch.float64)
    goal = p * total
    reached = weights.cumsum(-1)
    # Kept up to the token that reaches the goal.
    weights.masked_fill_((reached - weights >= goal[:, None]) & (torch.arange(count) > 0), 0.0)
    large = torch.tensor([cut.top_k > MOST_CANDIDATES for cut in cuts])
    left = ((k >= vocab) & (large | (reached[:, -1] < goal)) & (count < vocab)).nonzero()[:, 0].tolist()
    ids, order = ids.sort(-1)
    below = weights.gather(1, order).cumsum(-1)
    return ids.gather(1, _search(below, points)[:, None])[:, 0].tolist(), left


def _cut_whole(logits: Tensor, cut: Cut) -> None:
    """Rule out in place what a row, [vocab], does not keep, by its least kept logit: for flat or hardly cut rows."""
    if 0 < cut.top_k < len(logits):
        logits.masked_fill_(logits < logits.topk(cut.top_k, sorted=False).values.min(), -math.inf)
    if cut.top_p < 1:
        weights = logits.exp()
        goal = cut.top_p * float(weights.sum())
        low, high = -100.0, 0.0  # in fp32, what lies below has no weight
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if float((weights * (logits >= middle)).sum()) >= goal:
                low = middle
            else:
                high = middle
        logits.masked_fill_(logits < low, -math.inf)


def _draw_whole(logits: Tensor, points: list[float]) -> list[int]:
    """Draw from whole rows, overwritten: first the chunk, by the chunks' sums, then the token within it."""
    weights = _chunks(logits).exp_()  # [rows, chunks, CHUNK]
    sums = weights.sum(-1, dtype=torch.float64)  # [rows, chunks]
    below = sums.cumsum(-1)
    chunk = _search(below, points)[:, None]  # [rows, 1]
    inside = weights.gather(1, chunk[:, :, None].expand(-1, -1, CHUNK))[:, 0].double().cumsum(-1)  # [rows, CHUNK]
    # How far into its chunk the point lies.
    rest = torch.tensor(points, dtype=torch.float64)[:, None] * below[:, -1:] - (below - sums).gather(1, chunk)
    part = (rest / sums.gather(1, chunk)).clamp_(0.0, 1.0 - 2**-53)[:, 0].tolist()
    return (chunk[:, 0] * CHUNK + _search(inside, part)).tolist()


def _search(below: Tensor, points: list[float]) -> Tensor:
    """The first place whose sum exceeds each row's point, as a part of the whole: one of weight above 0. [rows]."""
    total = below[:, -1:]
    goal = torch.tensor(points, dtype=torch.float64)[:, None] * total
    # A point next to 1 may round up to the total itself, which no sum exceeds.
    goal = goal.minimum(total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(below, goal, right=True)[:, 0]


def _chunks(logits: Tensor) -> Tensor:
    """[rows, vocab] as [rows, chunks, CHUNK], the last chunk filled with -inf."""
    missing = -logits.shape[1] % CHUNK
    return (functional.pad(logits, (0, missing), value=-math.inf) if missing else logits).view(len(logits), -1, CHUNK)
