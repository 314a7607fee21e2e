"""How decode rows are cut into groups that are padded to one length: few groups, little padding. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence

GROUP_COST = 64
"""What one more group costs, in KV tokens read: the fixed time of its softmax."""


def group_rows(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cut rows into groups of least cost; returns (first, last + 1) of each, in order. Equal lengths stay together.

    lengths: each row's KV tokens, ascending.
    """
    cuts = [0, *(row for row in range(1, len(lengths)) if lengths[row] != lengths[row - 1]), len(lengths)]
    best = {0: 0}  # the least cost of the rows before a cut
    start = {0: 0}  # where the last group of those begins
    for number, end in enumerate(cuts[1:], 1):
        best[end], start[end] = min(
            (best[first] + GROUP_COST + (end - first) * lengths[end - 1], first) for first in cuts[:number]
        )
    groups: list[tuple[int, int]] = []
    end = len(lengths)
    while end:
        groups.append((start[end], end))
        end = start[end]
    return groups[::-1]
