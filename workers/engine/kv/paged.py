"""Memory in pages of a few tokens: a sequence holds a table of pages, and equal leading pages are shared.

A page is counted per holder. A full page that nobody holds any more stays cached until its memory is wanted; the least
recently used goes first.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable

from workers.engine.kv.manager import Change, Clear
from workers.engine.kv.prefixes import block_names
from workers.engine.sequence import Pages, Sequence

PAGE = 16
"""Tokens of a page. Small, so that little is lost in the last one; large enough for a kernel's tile."""


class PagedKV:
    """Implements ``KVManager`` over ``kv_tokens // PAGE`` pages."""

    def __init__(self, kv_tokens: int, caching: bool = True) -> None:
        pages = kv_tokens // PAGE
        self._pages = pages
        self._caching = caching
        self._free = deque(range(pages))
        self._holders = [0] * pages
        self._name: list[bytes | None] = [None] * pages
        self._by_name: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # cached and held by nobody, least recently used first
        self._changes: list[Change] = []

    @property
    def largest(self) -> int:
        return self._pages * PAGE

    @property
    def used(self) -> int:
        return PAGE * (self._pages - len(self._free) - len(self._idle))

    def admit(self, sequence: Sequence) -> bool:
        found = self._find(sequence)
        missing = len(sequence.tokens) // PAGE + 1 - len(found)
        idle = sum(1 for page in found if not self._holders[page])
        if missing > len(self._free) + len(self._idle) - idle:
            return False
        for page in found:
            self._hold(page)
        sequence.place = Pages(found + [self._take() for _ in range(missing)])
        sequence.computed = len(found) * PAGE
        return True

    def extend(self, sequence: Sequence) -> bool:
        table = _pages(sequence).table
        if sequence.computed + sequence.in_flight < len(table) * PAGE:
            return True
        if not (self._free or self._idle):
            return False
        table.append(self._take())
        return True

    def share(self, sequence: Sequence) -> None:
        if not self._caching:
            return
        pairs = zip(block_names(sequence, PAGE, sequence.computed), _pages(sequence).table, strict=False)
        for name, page in pairs:
            if self._name[page] is None and name not in self._by_name:
                self._name[page] = name
                self._by_name[name] = page

    def release(self, sequence: Sequence) -> None:
        table, written = _pages(sequence).table, sequence.computed + sequence.in_flight
        if written > sequence.proven:
            # Nobody else holds these: only full pages of proven tokens are shared.
            pages = table[sequence.proven // PAGE : -(-written // PAGE)]
            self._changes.append(Clear(Pages(pages), 0, len(pages) * PAGE))
        # From the end, so that the first pages of a text, which more texts share, are given up last.
        self._let_go(reversed(table))
        sequence.place = None

    def forget(self, lost: list[Change]) -> None:
        for page in self._by_name.values():
            self._name[page] = None
        self._by_name.clear()
        self._free.extend(self._idle)
        self._idle.clear()
        self._changes = [*lost, *self._changes]

    def take_changes(self) -> list[Change]:
        changes, self._changes = self._changes, []
        return changes

    def _find(self, sequence: Sequence) -> list[int]:
        """The cached pages of its leading tokens, all but the last token's."""
        found: list[int] = []
        if self._caching:
            for name in block_names(sequence, PAGE, len(sequence.tokens) - 1):
                if name not in self._by_name:
                    break
                found.append(self._by_name[name])
        return found

    def _hold(self, page: int) -> None:
        self._holders[page] += 1
        self._idle.pop(page, None)

    def _take(self) -> int:
        """A page for one holder, at the cost of a cached one if none is free."""
        if self._free:
            page = self._free.popleft()
        else:
            page, _ = self._idle.popitem(last=False)
            name = self._name[page]
            assert name is not None
            del self._by_name[name]
            self._name[page] = None
        self._holders[page] = 1
        return page

    def _let_go(self, pages: Iterable[int]) -> None:
        for page in pages:
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if self._name[page] is None:
                self._free.append(page)
            else:
                self._idle[page] = None


def _pages(sequence: Sequence) -> Pages:
    assert isinstance(sequence.place, Pages)
    return sequence.place
