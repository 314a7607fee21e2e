"""How decode rows are cut into groups that attend together: few groups, little computed in vain.

A group's rows share a block size and are padded to its longest member; free blocks inside it are computed too.
Knows no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from workers.engine.kv.arena import Block

GROUP_COST = 256
"""What one more group costs, in KV tokens read: the fixed time of its three kernels."""


def group_rows(blocks: Sequence[Block], lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cut rows into groups of least cost; returns (first, last + 1) of each, in order.

    blocks: each row's block, sorted by size, then offset.  lengths: each row's KV tokens.
    """
    best: list[float] = [0.0]  # the least cost of the first n rows
    start: list[int] = [0]  # where the last group of those begins
    for end in range(1, len(blocks) + 1):
        size, stop = blocks[end - 1].size, blocks[end - 1].offset
        longest, cost, chosen = 0, float("inf"), end - 1
        for first in range(end - 1, -1, -1):
            if blocks[first].size != size:
                break
            longest = max(longest, lengths[first])
            places = (stop - blocks[first].offset) // size + 1
            this = best[first] + GROUP_COST + places * longest
            if this < cost:
                cost, chosen = this, first
        best.append(cost)
        start.append(chosen)
    groups: list[tuple[int, int]] = []
    end = len(blocks)
    while end:
        groups.append((start[end], end))
        end = start[end]
    return groups[::-1]
