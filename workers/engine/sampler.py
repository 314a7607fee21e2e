"""Pick one token per row of logits, by each request's own parameters.

The pick depends on the row, the seed and the token's index alone: not on the batch, nor on what was drawn before. So a
resumed sequence needs no state, and neighbours never change each other's text.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workers.engine.draw import Cut, draw
from workers.engine.engine import Pick
from workers.engine.sequence import Sequence

_MASK = (1 << 64) - 1


def sample(logits: Tensor, sequences: list[Sequence]) -> list[Pick]:
    """Pick a token for each row. logits: fp32 [rows, vocab], overwritten; row i belongs to ``sequences[i]``."""
    params = [sequence.params for sequence in sequences]
    raw = {row: logits[row].log_softmax(-1) for row, p in enumerate(params) if p.logprobs is not None}
    _penalize(logits, sequences)
    _forbid_stops(logits, sequences)
    greedy = _argmax(logits)
    tokens, finite = greedy.tolist(), logits.gather(-1, greedy[:, None])[:, 0].isfinite().tolist()
    drawn = [row for row, p in enumerate(params) if p.temperature > 0 and finite[row]]
    if drawn:
        cuts = [Cut(p.temperature, p.top_k, p.top_p) for p in (params[row] for row in drawn)]
        points = [uniform(params[row].seed, sequences[row].output_tokens) for row in drawn]
        for row, token in zip(drawn, draw(logits[drawn], cuts, points), strict=True):
            tokens[row] = token
    return [
        Pick(None) if not finite[row] else _with_logprobs(tokens[row], raw.get(row), params[row].logprobs)
        for row in range(len(sequences))
    ]


def _argmax(logits: Tensor) -> Tensor:
    """The first place of each row's highest number, or of a NaN. [rows]."""
    if logits.device.type != "cpu":
        return logits.argmax(-1)
    # torch's own looks at one number after the other, which is ten times as long.
    return torch.from_numpy(logits.numpy().argmax(-1))


def uniform(seed: int, index: int) -> float:
    """A number in (0, 1) for the token ``index`` of a request: the same whenever asked.

    Source: splitmix64, Steele, Lea and Flood 2014, over the mixed seed and the index.
    """
    bits = _mix(_mix(seed & _MASK) + index * 0x9E3779B97F4A7C15)
    return ((bits >> 12) + 0.5) * 2.0**-52


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


def _with_logprobs(token: int, raw: Tensor | None, count: int | None) -> Pick:
    """Add the token's log probability under the raw distribution ([vocab]) and the likeliest alternatives."""
    if raw is None or count is None:
        return Pick(token)
    values, ids = raw.topk(min(count, raw.shape[0]))
    return Pick(token, float(raw[token]), list(zip(ids.tolist(), values.tolist(), strict=True)))
