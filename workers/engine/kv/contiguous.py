"""Memory in contiguous blocks: a sequence lies in one piece, which attention on a CPU reads as one matrix.

A sequence that outgrows its block moves to one of twice the size. Cached prefixes are blocks of their own that are
copied into the sequences that begin with them: a copy costs a hundredth of computing the tokens.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict

from workers.engine.kv.arena import MIN_BLOCK, Arena, Block, block_size
from workers.engine.kv.manager import Change, Clear, Copy
from workers.engine.kv.prefixes import block_names
from workers.engine.sequence import Sequence


class ContiguousKV:
    """Implements ``KVManager`` over an arena of ``kv_tokens``."""

    def __init__(self, kv_tokens: int, caching: bool = True) -> None:
        self._arena = Arena(kv_tokens)
        self._caching = caching
        self._cached: OrderedDict[bytes, Block] = OrderedDict()  # least recently used first
        self._changes: list[Change] = []

    @property
    def largest(self) -> int:
        return self._arena.largest

    @property
    def used(self) -> int:
        return self._arena.used - MIN_BLOCK * len(self._cached)

    def admit(self, sequence: Sequence) -> bool:
        # While half of the memory is free a sequence gets all that it may ever need, and is never moved.
        whole = sequence.kv_tokens
        plenty = self.used + block_size(whole) <= self._arena.capacity // 2
        block = self._take(whole if plenty else len(sequence.tokens) + 1)
        if block is None:
            return False
        sequence.place = block
        if self._caching:
            names = block_names(sequence, MIN_BLOCK, len(sequence.tokens) - 1)
            found = list(itertools.takewhile(self._cached.__contains__, names))
            for name in found:
                self._changes.append(Copy(self._cached[name], 0, block, sequence.computed, MIN_BLOCK))
                sequence.computed += MIN_BLOCK
            self._touch(found)
        return True

    def extend(self, sequence: Sequence) -> bool:
        old = _block(sequence)
        if sequence.computed < old.size:
            return True
        block = self._take(sequence.computed + 1)
        if block is None:
            return False
        self._changes.append(Copy(old, 0, block, 0, sequence.computed))
        self._arena.give_back(old)
        sequence.place = block
        return True

    def share(self, sequence: Sequence) -> None:
        """As the interface says, for the prompt: what was generated is seldom asked again."""
        if not self._caching or sequence.proven >= sequence.prompt_tokens:
            return
        names = block_names(sequence, MIN_BLOCK, min(sequence.computed, sequence.prompt_tokens))
        self._touch(names)
        for i, name in enumerate(names):
            if name in self._cached:
                continue
            block = self._arena.take(MIN_BLOCK, highest=True) or self._replaced(names[:i])
            if block is None:
                break
            self._changes.append(Copy(_block(sequence), i * MIN_BLOCK, block, 0, MIN_BLOCK))
            self._cached[name] = block
        self._touch(names)

    def release(self, sequence: Sequence) -> None:
        block = _block(sequence)
        if unproven := sequence.computed + sequence.in_flight - sequence.proven:
            self._changes.append(Clear(block, sequence.proven, unproven))
        self._arena.give_back(block)
        sequence.place = None

    def forget(self, lost: list[Change]) -> None:
        while self._cached:
            self._evict()
        self._changes = [change for change in (*lost, *self._changes) if isinstance(change, Clear)]

    def take_changes(self) -> list[Change]:
        changes, self._changes = self._changes, []
        return changes

    def _take(self, tokens: int) -> Block | None:
        """A block for so many tokens, at the cost of cached ones if need be."""
        block = self._arena.take(tokens)
        while block is None and self._cached and self.used + block_size(tokens) <= self._arena.capacity:
            self._evict()
            block = self._arena.take(tokens)
        return block

    def _touch(self, names: list[bytes]) -> None:
        """Note a use: the first block last, since without it the others can't be found."""
        for name in reversed(names):
            if name in self._cached:
                self._cached.move_to_end(name)

    def _evict(self) -> None:
        self._arena.give_back(self._cached.popitem(last=False)[1])

    def _replaced(self, kept: list[bytes]) -> Block | None:
        """The block of the least recently used prefix, unless it is one of ``kept``."""
        oldest = next(iter(self._cached), None)
        return None if oldest is None or oldest in kept else self._cached.pop(oldest)


def _block(sequence: Sequence) -> Block:
    assert isinstance(sequence.place, Block)
    return sequence.place
