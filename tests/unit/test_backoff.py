"""Waits before trying again: doubled up to a cap, and drawn with full jitter."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.backoff import doubled_s, jittered_s

pytestmark = pytest.mark.fast

tries = st.integers(0, 10_000)
seconds = st.floats(0.001, 1e6)
draws = st.floats(0, 1)


@given(tries, seconds, seconds)
def test_waits_double_up_to_the_cap(tries: int, base_s: float, cap_s: float) -> None:
    """The first wait is the base, each one twice the one before, and none is longer than the cap."""
    assert doubled_s(0, base_s, cap_s) == min(base_s, cap_s)
    wait_s, next_s = doubled_s(tries, base_s, cap_s), doubled_s(tries + 1, base_s, cap_s)
    assert 0 < wait_s <= next_s <= cap_s
    assert next_s == pytest.approx(min(cap_s, 2 * wait_s))


@given(tries, seconds, seconds, draws)
def test_a_drawn_wait_is_a_share_of_the_longest(tries: int, base_s: float, cap_s: float, draw: float) -> None:
    """Full jitter: anything between nothing and the doubled wait, in proportion to the draw."""
    assert jittered_s(tries, base_s, cap_s, lambda: draw) == draw * doubled_s(tries, base_s, cap_s)


@given(st.integers(0, 12), st.integers(0, 2**32))
def test_drawn_waits_spread_over_the_whole_range(tries: int, seed: int) -> None:
    """Many jobs that fail together come back evenly: half of them in each half of the range, some near both ends."""
    longest_s = doubled_s(tries, 1.0, 60.0)
    rng = random.Random(seed)
    waits = [jittered_s(tries, 1.0, 60.0, rng.random) for _ in range(2_000)]
    early = sum(wait_s < longest_s / 2 for wait_s in waits)
    assert 800 < early < 1_200
    assert min(waits) < longest_s / 100
    assert max(waits) > longest_s * 0.99
