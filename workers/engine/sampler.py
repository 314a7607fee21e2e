"""Pick one token per row of logits, by each request's own parameters.

The pick depends on the row, the seed and the token's index alone: not on the batch, nor on what was drawn before. So a
resumed sequence needs no state, and neighbours never change each other's text.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workers.engine.engine import Pick
from workers.engine.sequence import Sequence

FIRST_TOP = 256
"""Candidates tried first for top_p: they hold the nucleus of all but flat distributions."""
LEAST_TEMPERATURE = 1e-6
"""Below it fp32 can't divide by the temperature; the draw is greedy long before."""
_BISECTIONS = 60
_MASK = (1 << 64) - 1


def sample(logits: Tensor, sequences: list[Sequence]) -> list[Pick]:
    """Pick a token for each row. logits: fp32 [rows, vocab], overwritten; row i belongs to ``sequences[i]``."""
    params = [sequence.params for sequence in sequences]
    raw = {row: logits[row].log_softmax(-1) for row, p in enumerate(params) if p.logprobs is not None}
    _penalize(logits, sequences)
    _forbid_stops(logits, sequences)
    highest, greedy = logits.max(-1)
    tokens, finite = greedy.tolist(), highest.isfinite().tolist()
    drawn = [row for row, p in enumerate(params) if p.temperature > 0 and finite[row]]
    if drawn:
        for row, token in zip(drawn, _draw(logits[drawn], [sequences[row] for row in drawn]), strict=True):
            tokens[row] = token
    return [
        Pick(None) if not finite[row] else _with_logprobs(tokens[row], raw.get(row), params[row].logprobs)
        for row in range(len(sequences))
    ]


def uniform(seed: int, index: int) -> float:
    """A number in (0, 1) for the token ``index`` of a request: the same whenever asked.

    Source: splitmix64, Steele, Lea and Flood 2014, over the mixed seed and the index.
    """
    bits = _mix(_mix(seed & _MASK) + index * 0x9E3779B97F4A7C15)
    return ((bits >> 11) + 0.5) * 2.0**-53


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _penalize(logits: Tensor, sequences: list[Sequence]) -> None:
    """Repetition over prompt and output, as transformers; then presence and frequency over the output. In place."""
    rows: list[int] = []
    ids: list[int] = []
    factors: list[float] = []
    for row, sequence in enumerate(sequences):
        if sequence.params.repetition_penalty != 1.0:
            seen = set(sequence.tokens)
            rows += [row] * len(seen)
            ids += seen
            factors += [sequence.params.repetition_penalty] * len(seen)
    if rows:
        where, factor = (torch.tensor(rows), torch.tensor(ids)), torch.tensor(factors)
        values = logits[where]
        logits.index_put_(where, torch.where(values < 0, values * factor, values / factor))
    rows, ids, factors = [], [], []
    for row, sequence in enumerate(sequences):
        presence, frequency = sequence.params.presence_penalty, sequence.params.frequency_penalty
        if presence or frequency:
            counts = sequence.output_counts()
            rows += [row] * len(counts)
            ids += counts
            factors += [presence + frequency * count for count in counts.values()]
    if rows:
        logits.index_put_((torch.tensor(rows), torch.tensor(ids)), -torch.tensor(factors), accumulate=True)


def _forbid_stops(logits: Tensor, sequences: list[Sequence]) -> None:
    """Rule out the tokens that would end a text before its min_tokens. In place."""
    for row, sequence in enumerate(sequences):
        if sequence.stop_ids and not sequence.may_stop:
            logits[row, list(sequence.stop_ids)] = -math.inf


def _draw(logits: Tensor, sequences: list[Sequence]) -> list[int]:
    """Draw one token per row, [rows, vocab], by inverting the distribution function over the kept tokens.

    Tokens stay in the order of their ids: in the order of likelihood, a rounding error could swap two near-equal ones.
    """
    params = [sequence.params for sequence in sequences]
    logits = logits - logits.max(-1, keepdim=True).values  # the likeliest token is at 0
    logits /= torch.tensor([max(p.temperature, LEAST_TEMPERATURE) for p in params])[:, None]
    least = torch.maximum(_top_k_floor(logits, [p.top_k for p in params]), torch.full((len(params),), -math.inf))
    logits.masked_fill_(logits < least[:, None], -math.inf)
    if any(p.top_p < 1 for p in params):
        least = _top_p_floor(logits, torch.tensor([p.top_p for p in params], dtype=torch.float64))
        logits.masked_fill_(logits < least[:, None], -math.inf)
    below = logits.double().exp_().cumsum(-1)  # [rows, vocab]
    points = torch.tensor([uniform(s.params.seed, s.output_tokens) for s in sequences], dtype=torch.float64)
    # The first token whose sum exceeds the point has a probability above 0, so it is a kept one.
    drawn = torch.searchsorted(below, (points * below[:, -1])[:, None], right=True)
    return drawn[:, 0].clamp_(max=logits.shape[1] - 1).tolist()


def _top_k_floor(logits: Tensor, ks: list[int]) -> Tensor:
    """The least logit to keep for each row's top_k, [rows]; -inf where it is 0 or covers the vocabulary."""
    vocab = logits.shape[1]
    floor = torch.full((len(ks),), -math.inf)
    rows = [row for row, k in enumerate(ks) if 0 < k < vocab]
    if rows:
        wanted = torch.tensor([ks[row] for row in rows])
        top = logits[rows].topk(int(wanted.max()), sorted=True).values
        floor[rows] = top.gather(1, wanted[:, None] - 1)[:, 0]
    return floor


def _top_p_floor(logits: Tensor, ps: Tensor) -> Tensor:
    """The least logit to keep so that the kept tokens' probabilities reach top_p, [rows]; -inf where it is 1.

    logits: [rows, vocab], each row's highest at 0.
    """
    weights = logits.double().exp_()
    goal = ps * weights.sum(-1)
    top = logits.topk(min(FIRST_TOP, logits.shape[1])).values  # [rows, tried], falling
    reached = top.double().exp_().cumsum(-1) >= goal[:, None]
    floor = top.gather(1, reached.int().argmax(-1, keepdim=True))[:, 0]
    flat = ~reached[:, -1]
    if flat.any():
        floor[flat] = _bisect(logits[flat], weights[flat], goal[flat])
    return floor.masked_fill_(ps >= 1, -math.inf)


def _bisect(logits: Tensor, weights: Tensor, goal: Tensor) -> Tensor:
    """The highest floor under which the kept weights reach the goal: for flat distributions, without a sort. [rows]."""
    low, high = torch.full_like(goal, -1e4), torch.zeros_like(goal)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        enough = weights.where(logits >= middle[:, None], 0.0).sum(-1) >= goal
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return low.float()


def _with_logprobs(token: int, raw: Tensor | None, count: int | None) -> Pick:
    """Add the token's log probability under the raw distribution ([vocab]) and the likeliest alternatives."""
    if raw is None or count is None:
        return Pick(token)
    values, ids = raw.topk(min(count, raw.shape[0]))
    return Pick(token, float(raw[token]), list(zip(ids.tolist(), values.tolist(), strict=True)))
