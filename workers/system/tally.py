"""Which lines of a batch are settled, in whatever order they end: what must be known to go on after a crash.

Pure bookkeeping: neither files nor a server.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from farm.ledger.driving import Progress, Ranges
from farm.results import Usage


class Tally:
    """Counts on from a batch's progress. A line is read once, and settled once."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._read: deque[tuple[int, int]] = deque()
        self._settled = set(numbers_in(progress.ahead))

    @property
    def spread(self) -> int:
        """How many lines there are from the first that is not settled to the last that was read."""
        return len(self._read)

    def read(self, number: int, end: int) -> bool:
        """Note a line and where it ends. Returns whether there is anything to do for it."""
        self._read.append((number, end))
        return number not in self._settled

    def settle(self, number: int, usage: Usage | None) -> None:
        """Note that what is written for a line is known. usage: its tokens, None for one that failed."""
        self._settled.add(number)
        now = replace(self._progress, faults=0)
        if usage is None:
            self._progress = replace(now, bad=now.bad + 1)
        else:
            self._progress = replace(
                now,
                done=now.done + 1,
                prompt_tokens=now.prompt_tokens + usage.prompt_tokens,
                completion_tokens=now.completion_tokens + usage.completion_tokens,
            )

    def progress(self) -> Progress:
        """How far the batch has come, as it may be written once what was settled is."""
        while self._read and self._read[0][0] in self._settled:
            number, end = self._read.popleft()
            self._settled.discard(number)
            self._progress = replace(self._progress, next_line=number + 1, offset=end)
        self._progress = replace(self._progress, ahead=ranges_of(self._settled))
        return self._progress


def ranges_of(numbers: Iterable[int]) -> Ranges:
    """Numbers as runs of neighbours, each with its first and last."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return tuple((first, last) for first, last in runs)


def numbers_in(ranges: Ranges) -> Iterable[int]:
    """The numbers that runs stand for."""
    for first, last in ranges:
        yield from range(first, last + 1)
