"""Draw tokens from logits: temperature, top-k, top-p, and one given number per row; the vocabulary is never sorted.

A draw inverts the distribution function over the kept tokens in the order of their ids: in the order of likelihood, a
rounding error could swap two near-equal ones. Knows no requests and no random state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
_ROWS = 32
"""Rows bisected at once: a GPU holds some 4 MB for each at a vocabulary of 250,880."""
_WEIGHTLESS = -100.0
"""A logit this far below the highest has no weight beside it in fp32."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What to keep of a row: the ``top_k`` likeliest (0: all), of those the fewest that reach ``top_p``."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0


def draw(logits: Tensor, cuts: list[Cut], points: list[float]) -> Tensor:
    """Draw one token per row: int64 [rows], on the device of the logits.

    logits: fp32 [rows, vocab], finite at its highest; points: a number in (0, 1) per row. The host does not wait for a
    GPU.
    """
    vocab, device = logits.shape[1], logits.device
    logits = logits - logits.max(-1, keepdim=True).values  # the likeliest token is at 0
    logits /= on_device([max(cut.temperature, LEAST_TEMPERATURE) for cut in cuts], device)[:, None]
    tokens = torch.zeros(len(cuts), dtype=torch.int64, device=device)
    # Whether a short list holds a nucleus must be asked; one of top_k tokens does.
    listed, may_ask = min(MOST_CANDIDATES, vocab - 1), _may_ask(device)
    short = [row for row, cut in enumerate(cuts) if 0 < cut.top_k <= listed or (may_ask and cut.top_p < 1)]
    whole = sorted({*range(len(cuts))}.difference(short))
    if short:
        rows = on_device(short, device)
        drawn, left = _draw_short(logits[rows], [cuts[row] for row in short], [points[row] for row in short])
        tokens[rows] = drawn
        if left is not None:
            whole += [short[i] for i in left.nonzero()[:, 0].tolist()]
    if whole:
        rows = on_device(whole, device)
        kept = _cut_whole(logits[rows], [cuts[row] for row in whole])
        tokens[rows] = _draw_whole(kept, [points[row] for row in whole])
    return tokens


def _may_ask(device: torch.device) -> bool:
    """Whether the host reads a number there without waiting."""
    return device.type == "cpu"


def on_device(
    values: Sequence[int] | Sequence[float], device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """A list as a tensor there. A GPU takes it when it gets to it: the host does not wait."""
    tensor = torch.tensor(values, dtype=dtype)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


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


def _draw_short(logits: Tensor, cuts: list[Cut], points: list[float]) -> tuple[Tensor, Tensor | None]:
    """Draw from short lists of candidates: int64 [rows].

    Also returns which rows' lists did not hold all that they keep, bool [rows]; None if it can't be any.
    """
    vocab, device = logits.shape[1], logits.device
    # A row without a usable top_k gets all of the list, and its nucleus must lie within.
    ks = [cut.top_k if 0 < cut.top_k <= MOST_CANDIDATES else vocab for cut in cuts]
    count = min(vocab, max(NUCLEUS_CANDIDATES if k == vocab else k for k in ks))
    k, p = on_device(ks, device), on_device([cut.top_p for cut in cuts], device, torch.float64)
    values, ids = top(logits, count)
    places = torch.arange(count, device=device)
    weights = values.double().exp_().masked_fill_(places >= k[:, None], 0.0)  # [rows, count]
    total = weights.sum(-1)
    open_rows = [row for row, cut in enumerate(cuts) if ks[row] == vocab]
    if open_rows:
        rows = on_device(open_rows, device)
        total[rows] = logits[rows].exp_().sum(-1, dtype=torch.float64)
    goal = p * total
    reached = weights.cumsum(-1)
    # Kept up to the token that reaches the goal.
    weights.masked_fill_((reached - weights >= goal[:, None]) & (places > 0), 0.0)
    left = None
    if open_rows and count < vocab:
        large = on_device([cut.top_k > MOST_CANDIDATES for cut in cuts], device)
        left = (k >= vocab) & (large | (reached[:, -1] < goal))
    ids, order = ids.sort(-1)
    below = weights.gather(1, order).cumsum(-1)
    return ids.gather(1, _search(below, on_device(points, device, torch.float64))[:, None])[:, 0], left


def _cut_whole(logits: Tensor, cuts: list[Cut]) -> Tensor:
    """Rule out in place what rows, [rows, vocab], do not keep, by the least kept logit: for flat or hardly cut rows."""
    for row, cut in zip(logits, cuts, strict=True):
        if 0 < cut.top_k < len(row):
            row.masked_fill_(row < row.topk(cut.top_k, sorted=False).values.min(), -math.inf)
    nuclei = [row for row, cut in enumerate(cuts) if cut.top_p < 1]
    for first in range(0, len(nuclei), _ROWS):
        some = nuclei[first : first + _ROWS]
        rows = on_device(some, logits.device)
        p = on_device([cuts[row].top_p for row in some], logits.device, torch.float64)
        kept = logits[rows]
        logits[rows] = kept.masked_fill_(kept < _least(kept, p), -math.inf)
    return logits


def _least(logits: Tensor, p: Tensor) -> Tensor:
    """The least logit of each row's nucleus, [rows, 1], to within a 2^32nd of the range that has weight in fp32."""
    chunks = _chunks(logits)  # [rows, chunks, CHUNK]
    weights = chunks.exp()
    goal = p * weights.sum(-1).sum(-1, dtype=torch.float64)
    low = torch.full_like(logits[:, 0], _WEIGHTLESS)
    high = torch.zeros_like(low)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        reached = (weights * (chunks >= middle[:, None, None])).sum(-1).sum(-1, dtype=torch.float64)
        low, high = torch.where(reached >= goal, middle, low), torch.where(reached >= goal, high, middle)
    return low[:, None]


def _draw_whole(logits: Tensor, points: list[float]) -> Tensor:
    """Draw from whole rows, overwritten: first the chunk, by the chunks' sums, then the token within it. [rows]."""
    point = on_device(points, logits.device, torch.float64)
    weights = _chunks(logits).exp_()  # [rows, chunks, CHUNK]
    sums = weights.sum(-1, dtype=torch.float64)  # [rows, chunks]
    below = sums.cumsum(-1)
    chunk = _search(below, point)[:, None]  # [rows, 1]
    inside = weights.gather(1, chunk[:, :, None].expand(-1, -1, CHUNK))[:, 0].double().cumsum(-1)  # [rows, CHUNK]
    # How far into its chunk the point lies.
    rest = point[:, None] * below[:, -1:] - (below - sums).gather(1, chunk)
    part = (rest / sums.gather(1, chunk)).clamp_(0.0, 1.0 - 2**-53)[:, 0]
    return chunk[:, 0] * CHUNK + _search(inside, part)


def _search(below: Tensor, points: Tensor) -> Tensor:
    """The first place whose sum exceeds each row's point, as a part of the whole: one of weight above 0. [rows].

    points: fp64 [rows].
    """
    total = below[:, -1:]
    goal = points[:, None] * total
    # A point next to 1 may round up to the total itself, which no sum exceeds.
    goal = goal.minimum(total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(below, goal, right=True)[:, 0]


def _chunks(logits: Tensor) -> Tensor:
    """[rows, vocab] as [rows, chunks, CHUNK], the last chunk filled with -inf."""
    missing = -logits.shape[1] % CHUNK
    return (functional.pad(logits, (0, missing), value=-math.inf) if missing else logits).view(len(logits), -1, CHUNK)
