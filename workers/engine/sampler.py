"""Pick one token per row of logits, by each request's own parameters.

The pick depends on the row, the seed and the token's index alone: not on the batch, nor on what was drawn before. So a
resumed sequence needs no state, and neighbours never change each other's text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.draw import Cut, draw, on_device
from workers.engine.model import Pick
from workers.engine.sequence import Sequence

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Drawn:
    """Picks as tensors, still where the logits are, or on their way to the host.

    tokens: int64 [rows]; finite: bool [rows]; raw: of each row that asked for logprobs, the chosen
    token's, and the likeliest ids with theirs.
    """

    tokens: Tensor
    finite: Tensor
    raw: dict[int, tuple[Tensor, Tensor, Tensor]]

    def to_host(self) -> Drawn:
        """The same on the host, as soon as the device's stream has got there."""
        if self.tokens.device.type == "cpu":
            return self
        raw = {row: (_to_host(own), _to_host(ids), _to_host(values)) for row, (own, ids, values) in self.raw.items()}
        return Drawn(_to_host(self.tokens), _to_host(self.finite), raw)

    def picks(self) -> list[Pick]:
        """The picks, row by row. Waits for a device."""
        tokens, finite = self.tokens.tolist(), self.finite.tolist()
        picks = [Pick(token if is_finite else None) for token, is_finite in zip(tokens, finite, strict=True)]
        for row, (own, ids, values) in self.raw.items():
            if finite[row]:
                top = list(zip(ids.tolist(), values.tolist(), strict=True))
                picks[row] = Pick(tokens[row], float(own), top)
        return picks


def sample(logits: Tensor, sequences: list[Sequence]) -> list[Pick]:
    """Pick a token for each row. logits: fp32 [rows, vocab], overwritten; row i belongs to ``sequences[i]``."""
    return begin(logits, sequences, [sequence.output_tokens for sequence in sequences]).picks()


def begin(logits: Tensor, sequences: list[Sequence], indices: list[int]) -> Drawn:
    """Draw on the device of the logits; see ``sample``. indices: which token of the output each row gives.

    A sequence whose last tokens are not known yet must have no penalties. The host waits for the device only where
    ``draw`` says so.
    """
    params = [sequence.params for sequence in sequences]
    raw = {row: logits[row].log_softmax(-1) for row, p in enumerate(params) if p.logprobs is not None}
    _penalize(logits, sequences)
    _forbid_stops(logits, sequences, indices)
    tokens = _argmax(logits)
    finite = logits.gather(-1, tokens[:, None])[:, 0].isfinite()
    drawn = [row for row, p in enumerate(params) if p.temperature > 0]
    if drawn:
        cuts = [Cut(p.temperature, p.top_k, p.top_p) for p in (params[row] for row in drawn)]
        points = [uniform(params[row].seed, indices[row]) for row in drawn]
        rows = on_device(drawn, logits.device)
        # A row without a pick is drawn from as well, in vain, and must not stop the others.
        tokens[rows] = draw(logits[rows].masked_fill_(~finite[rows, None], 0.0), cuts, points)
    return Drawn(tokens, finite, {row: _likeliest(tokens[row], raw[row], params[row].logprobs) for row in raw})


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
        where = (on_device(rows, logits.device), on_device(ids, logits.device))
        factor = on_device(factors, logits.device)
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
        where = (on_device(rows, logits.device), on_device(ids, logits.device))
        logits.index_put_(where, -on_device(factors, logits.device), accumulate=True)


def _forbid_stops(logits: Tensor, sequences: list[Sequence], indices: list[int]) -> None:
    """Rule out the tokens that would end a text before its min_tokens. In place."""
    for row, (sequence, index) in enumerate(zip(sequences, indices, strict=True)):
        if sequence.stop_ids and index < sequence.params.min_tokens:
            logits[row].index_fill_(0, on_device(list(sequence.stop_ids), logits.device), -math.inf)


def _likeliest(token: Tensor, raw: Tensor, count: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """The token's log probability under the raw distribution, [vocab], and the likeliest ids with theirs."""
    values, ids = raw.topk(min(count or 0, raw.shape[0]))
    return raw.gather(0, token[None])[0], ids, values


def _to_host(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
