"""Who holds which part of the KV cache: blocks of a power of two tokens, split and merged as buddies.

A block is contiguous, so attention reads it without a table. Counts tokens and knows no tensors.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

MIN_BLOCK = 64
"""Tokens of the smallest block. Most short requests fit it, and a table of blocks stays short."""


@dataclass(frozen=True, slots=True, order=True)
class Block:
    """``size`` KV tokens from ``offset`` on. ``offset`` is a multiple of ``size``."""

    offset: int
    size: int


def block_size(tokens: int) -> int:
    """The size of the block that holds so many tokens."""
    return max(MIN_BLOCK, 1 << (tokens - 1).bit_length())


class Arena:
    """A buddy allocator over ``capacity`` tokens; takes the lowest block first, so that live blocks stay dense."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity // MIN_BLOCK * MIN_BLOCK
        self.used = 0
        self._free: dict[int, list[int]] = {}
        offset = 0
        while offset < self.capacity:
            # The largest power of two that fits, from the left: every offset is a multiple of its size.
            size = 1 << ((self.capacity - offset).bit_length() - 1)
            self._free.setdefault(size, []).append(offset)
            offset += size
        self.largest = max(self._free, default=0)

    def take(self, tokens: int, *, highest: bool = False) -> Block | None:
        """A block for so many tokens, or None while none is free: the lowest, or the highest of its size."""
        wanted = block_size(tokens)
        # The smallest block that does, so that large ones stay whole.
        size = min((size for size, offsets in self._free.items() if size >= wanted and offsets), default=None)
        if size is None:
            return None
        offset = max(self._free[size]) if highest else self._free[size][0]
        self._discard(offset, size)
        while size > wanted:
            size //= 2
            heapq.heappush(self._free.setdefault(size, []), offset if highest else offset + size)
            offset += size if highest else 0
        self.used += size
        return Block(offset, size)

    def give_back(self, block: Block) -> None:
        """Free a block, and merge it with its buddy while that is free too."""
        offset, size = block.offset, block.size
        self.used -= size
        while size < self.largest:
            buddy = offset ^ size
            free = self._free.get(size, [])
            if buddy not in free:
                break
            self._discard(buddy, size)
            offset, size = min(offset, buddy), size * 2
        heapq.heappush(self._free.setdefault(size, []), offset)

    def _discard(self, offset: int, size: int) -> None:
        """Take one block off the free ones."""
        free = self._free[size]
        if free[0] == offset:
            heapq.heappop(free)
        else:
            free.remove(offset)
            heapq.heapify(free)
