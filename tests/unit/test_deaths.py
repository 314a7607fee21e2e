"""When an engine counts as broken, and how long it is left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.deaths import FIRST_PAUSE_S, Deaths

pytestmark = pytest.mark.fast


def test_deaths_in_a_row_make_it_failing_and_the_waits_longer() -> None:
    """Each wait is twice the one before, up to the cap; the last of ``most`` deaths makes it failing."""
    deaths = Deaths(most=4, cap_s=1.5)
    assert (deaths.is_failing, deaths.needs_test, deaths.pause_s) == (False, False, 0.0)
    seen = []
    for number in range(6):
        deaths.died(f"reason {number}")
        seen.append((deaths.is_failing, deaths.pause_s))
    assert seen == [(False, 0.25), (False, 0.5), (False, 1.0), (True, 1.5), (True, 1.5), (True, 1.5)]
    assert deaths.why == "reason 5"
    assert deaths.needs_test


def test_a_token_of_a_job_clears_it() -> None:
    """Whatever died before, an engine that serves a job works."""
    deaths = Deaths(most=2, cap_s=30)
    for _ in range(3):
        deaths.died("x")
    deaths.gave_token()
    assert (deaths.is_failing, deaths.needs_test, deaths.count) == (False, False, 0)


def test_a_passed_test_gives_it_one_more_chance() -> None:
    """It may be tried with a job, but the next death counts on from where it was, with the wait as long."""
    deaths = Deaths(most=2, cap_s=30)
    for _ in range(5):
        deaths.died("x")
    waited_s = deaths.pause_s
    deaths.passed_test()
    assert not deaths.is_failing
    deaths.died("x")
    assert deaths.is_failing
    assert deaths.pause_s == 2 * waited_s


@given(st.lists(st.sampled_from(["died", "token", "test"]), max_size=60), st.integers(1, 8))
def test_it_is_failing_exactly_after_so_many_deaths_without_a_token(events: list[str], most: int) -> None:
    """Neighbours' tokens keep a prompt that kills engines from being taken for a broken engine."""
    deaths, row, tested = Deaths(most=most, cap_s=30), 0, False
    for event in events:
        if event == "died":
            deaths.died("x")
            row, tested = row + 1, False
        elif event == "token":
            deaths.gave_token()
            row = 0
        else:
            deaths.passed_test()
            tested = True
        assert deaths.is_failing == (row >= most and not tested)
        assert (deaths.pause_s > 0) == (row > 0)
        assert deaths.pause_s <= max(30, FIRST_PAUSE_S)
