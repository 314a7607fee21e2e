"""The memory that keys and values lie in: what is taken and given back is whole again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.engine.kv.arena import MIN_BLOCK, Arena, Block

pytestmark = pytest.mark.fast


@given(st.integers(1, 40), st.lists(st.integers(1, 700), max_size=30))
def test_memory_taken_and_given_back_is_whole_again(blocks: int, wants: list[int]) -> None:
    """After any use the arena offers the same largest block as before."""
    arena = Arena(blocks * MIN_BLOCK + 3)
    held = [block for want in wants if (block := arena.take(want))]
    assert all(block.offset % block.size == 0 for block in held)
    for block in held:
        arena.give_back(block)
    assert arena.used == 0
    assert arena.take(arena.largest) == Block(0, arena.largest)


def test_memory_from_the_top_leaves_the_bottom_whole() -> None:
    """Cached blocks lie at the far end, so that live ones stay dense."""
    arena = Arena(1024)
    assert [arena.take(64, highest=True), arena.take(64, highest=True)] == [Block(960, 64), Block(896, 64)]
    assert arena.take(512) == Block(0, 512)
