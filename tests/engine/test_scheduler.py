"""The scheduler's promises, for any mix of requests: slots, memory, budget, order, and everyone finishes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from workers.engine.arena import MIN_BLOCK, Arena, Block
from workers.engine.kernels.grouping import group_rows
from workers.engine.protocol import SamplingParams
from workers.engine.scheduler import Scheduler
from workers.engine.sequence import Sequence

pytestmark = pytest.mark.fast

SLOTS, CAPACITY, BUDGET = 4, 640, 48


class Schedules(RuleBasedStateMachine):
    """Requests come, are cancelled and step; a step appends one token to each sampled sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(SLOTS, Arena(CAPACITY), BUDGET)
        self.added: list[Sequence] = []

    @rule(prompt=st.integers(1, 300), output=st.integers(1, 200))
    def add(self, prompt: int, output: int) -> None:
        sequence = Sequence(str(len(self.added)), prompt, [0] * prompt, SamplingParams(max_tokens=output))
        self.scheduler.add(sequence)
        self.added.append(sequence)

    @precondition(lambda self: self.scheduler.running or self.scheduler.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        live = [*self.scheduler.running, *self.scheduler.waiting]
        self.scheduler.remove(data.draw(st.sampled_from(live)))

    @rule()
    def step(self) -> None:
        step = self.scheduler.schedule()
        assert step.tokens > 0 or not (self.scheduler.running or self.scheduler.waiting)
        assert sum(chunk.count for chunk in step.chunks) <= BUDGET
        busy = [id(s) for s in step.decodes] + [id(chunk.sequence) for chunk in step.chunks]
        assert len(busy) == len(set(busy))
        sampled = step.sampled
        self.scheduler.complete(step)
        for sequence in self.scheduler.running:
            assert (sequence in sampled) == (sequence.pending == 0)
        for sequence in sampled:
            sequence.append(0)
            if sequence.is_complete:
                self.scheduler.remove(sequence)

    @invariant()
    def slots_and_memory_are_not_shared(self) -> None:
        running = self.scheduler.running
        assert len(running) <= SLOTS
        blocks = sorted(sequence.block for sequence in running if sequence.block)
        assert len(blocks) == len(running)
        assert all(a.offset + a.size <= b.offset for a, b in itertools.pairwise(blocks))
        assert all(sequence.block and sequence.block.size >= sequence.kv_tokens for sequence in running)
        assert self.scheduler.arena.used == sum(block.size for block in blocks) <= CAPACITY

    @invariant()
    def nobody_is_overtaken(self) -> None:
        waiting = [int(sequence.id) for sequence in self.scheduler.waiting]
        assert waiting == sorted(waiting)
        if waiting:
            assert all(int(sequence.id) < waiting[0] for sequence in self.scheduler.running)

    def teardown(self) -> None:
        steps = 0
        while self.scheduler.running or self.scheduler.waiting:
            self.step()
            steps += 1
            assert steps < 300 * len(self.added) + 1
        assert self.scheduler.arena.take(512) == Block(0, 512)


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(max_examples=25, stateful_step_count=40)


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
