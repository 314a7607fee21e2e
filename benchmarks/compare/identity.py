"""Whether a contender's tokens are those of one-by-one generation, and whether a difference is more than a tie.

Two engines add in another order, so that logits differ in the last bits: where the reference's two likeliest tokens lie
within ``GAP`` either may come. A difference elsewhere is an error of the engine, or of weights that are not the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.compare.contender import Outputs, Request

GAP = 1e-4


@dataclass(frozen=True, slots=True)
class Identity:
    """How a contender's tokens compare with the reference's."""

    requests: int
    same_requests: int
    divergences: int
    """Requests whose first difference lies where the reference's two likeliest logits are further apart than GAP."""
    ties: int
    """Requests whose first difference lies where they are not."""
    token_share: float
    """Tokens before their request's first difference, of all."""


def compare(
    requests: list[Request], reference: Outputs, outputs: Outputs, gap: Callable[[list[int]], float]
) -> Identity:
    """``gap``: how far apart the reference's two likeliest logits are after these tokens."""
    same = same_tokens = divergences = ties = 0
    for (prompt, _), expected, output in zip(requests, reference, outputs, strict=True):
        at = first_difference(expected, output)
        same_tokens += len(expected) if at is None else at
        if at is None:
            same += 1
        elif gap(prompt + expected[:at]) > GAP:
            divergences += 1
        else:
            ties += 1
    tokens = sum(len(output) for output in reference)
    return Identity(len(requests), same, divergences, ties, same_tokens / tokens)


def first_difference(expected: list[int], output: list[int]) -> int | None:
    """Where two texts part; None if they are equal."""
    if expected == output:
        return None
    pairs = enumerate(zip(expected, output, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(expected), len(output)))
