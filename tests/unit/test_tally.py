"""Which lines of a batch are settled: whatever order they end in, and wherever a crash comes, each is settled once."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.ledger.driving import Progress
from farm.results import Usage
from workers.system.tally import Tally, numbers_in, ranges_of

pytestmark = pytest.mark.fast

WIDTH = 10  # bytes of a line


@given(st.sets(st.integers(1, 60)))
def test_runs_stand_for_their_numbers(numbers: set[int]) -> None:
    """Runs are in order, apart from one another, and give back the numbers."""
    runs = ranges_of(numbers)
    assert list(numbers_in(runs)) == sorted(numbers)
    assert all(first <= last for first, last in runs)
    assert all(last + 1 < first for (_, last), (first, _) in pairwise(runs))


def lines_from(progress: Progress, total: int, blank: set[int]) -> list[tuple[int, int]]:
    """What a reader gives from there on: numbers and ends of the lines that are not blank."""
    assert progress.offset == (progress.next_line - 1) * WIDTH
    return [(n, n * WIDTH) for n in range(progress.next_line, total + 1) if n not in blank]


@given(st.data(), st.integers(1, 25), st.sets(st.integers(1, 25)))
def test_each_line_is_settled_once_whatever_happens(data: st.DataObject, total: int, blank: set[int]) -> None:
    """Lines end in any order; now and then progress is written, and now and then all that was not written is lost."""
    written = Progress(total=total)
    settled: list[int] = []
    wanted = set(range(1, total + 1)) - blank
    for _ in range(100):
        tally, unwritten = Tally(written), list[int]()
        source = lines_from(written, total, blank)
        upto = data.draw(st.integers(0, len(source)))
        open_lines = [n for n, end in source[:upto] if tally.read(n, end)]
        assert not set(open_lines) & set(settled)
        for number in data.draw(st.permutations(open_lines)):
            tally.settle(number, Usage(2, 3) if number % 2 else None)
            unwritten.append(number)
            if data.draw(st.booleans()):
                written = Progress.of({name: str(value) for name, value in tally.progress().to_fields().items()})
                settled += unwritten
                unwritten = []
        if upto == len(source) and not unwritten:
            written = tally.progress()
            break
        if data.draw(st.booleans()):
            written, settled = tally.progress(), settled + unwritten
    assert sorted(settled) == sorted(set(settled))
    assert set(settled) <= wanted
    assert written.done + written.bad == len(settled)
    assert written.prompt_tokens == 2 * written.done == 2 * sum(n % 2 for n in settled)
    if set(settled) == wanted:
        assert lines_from(written, total, blank | set(numbers_in(written.ahead))) == []


def test_a_slow_line_holds_up_the_place_and_not_the_others() -> None:
    """Lines behind one that has not ended are kept as runs, until it ends and the place moves past them all."""
    tally = Tally(Progress())
    for number in range(1, 101):
        tally.read(number, number * WIDTH)
    for number in [*range(2, 51), *range(52, 101)]:
        tally.settle(number, None)
    before = tally.progress()
    assert (before.next_line, before.offset, before.ahead, tally.spread) == (1, 0, ((2, 50), (52, 100)), 100)
    tally.settle(1, Usage())
    after = tally.progress()
    assert (after.next_line, after.offset, after.ahead, tally.spread) == (51, 500, ((52, 100),), 50)


def test_faults_count_until_a_line_is_settled() -> None:
    """A batch that meets a defect keeps its count of them, however often it is written, until it gets on."""
    tally = Tally(Progress(total=2, faults=3))
    tally.read(1, 10)
    assert tally.progress().faults == 3
    tally.settle(1, None)
    assert tally.progress().faults == 0
