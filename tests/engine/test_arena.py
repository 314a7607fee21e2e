"""The memory that keys and values lie in: what is taken and given back is whole again, and groups of rows cover all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.engine.kernels.grouping import group_rows
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


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 64)), min_size=1, max_size=20, unique_by=lambda pair: pair[0])
)
def test_groups_cover_every_row_once_and_in_order(rows: list[tuple[int, int]]) -> None:
    """Cutting rows into groups neither loses nor repeats one, and never mixes block sizes."""
    blocks = sorted(
        (Block(place * 128, 64) if place % 2 else Block(place * 128, 128) for place, _ in rows),
        key=lambda block: (block.size, block.offset),
    )
    groups = group_rows(blocks, [length for _, length in rows])
    assert [row for first, last in groups for row in range(first, last)] == [*range(len(rows))]
    assert all(len({block.size for block in blocks[first:last]}) == 1 for first, last in groups)


def test_memory_from_the_top_leaves_the_bottom_whole() -> None:
    """Cached blocks lie at the far end, so that live ones stay dense."""
    arena = Arena(1024)
    assert [arena.take(64, highest=True), arena.take(64, highest=True)] == [Block(960, 64), Block(896, 64)]
    assert arena.take(512) == Block(0, 512)
