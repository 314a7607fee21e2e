"""Every way that requests can come, go and step, with what must hold of a scheduler at any moment."""

from __future__ import annotations

import itertools
from collections import deque

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from workers.engine.kv.arena import Block
from workers.engine.kv.contiguous import ContiguousKV
from workers.engine.kv.paged import PAGE, PagedKV
from workers.engine.protocol import SamplingParams
from workers.engine.scheduler import Scheduler, Step
from workers.engine.sequence import Pages, Sequence

SLOTS, CAPACITY, BUDGET = 4, 640, 48


class Schedules(RuleBasedStateMachine):
    """Requests come, are cancelled and step; a step that is collected appends one token to each sampled sequence.

    Prompts repeat few tokens, so that many begin alike. Memory holds two or three requests.
    """

    depth = 1
    lookahead = 0
    kind: type[ContiguousKV] | type[PagedKV] = ContiguousKV

    def __init__(self) -> None:
        super().__init__()
        self.kv = self.kind(CAPACITY)
        self.scheduler = Scheduler(SLOTS, self.kv, BUDGET, self.depth, self.lookahead)
        self.added: list[Sequence] = []
        self.in_flight: deque[Step] = deque()

    @rule(prompt=st.integers(1, 300), output=st.integers(1, 200), same=st.integers(0, 300))
    def add(self, prompt: int, output: int, same: int) -> None:
        number = len(self.added)
        tokens = [0] * min(same, prompt) + [number + 1] * max(0, prompt - same)
        sequence = Sequence(str(number), prompt, tokens, SamplingParams(max_tokens=output))
        self.scheduler.add(sequence)
        self.added.append(sequence)

    @precondition(lambda self: self.scheduler.running or self.scheduler.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        live = [*self.scheduler.running, *self.scheduler.waiting]
        self.scheduler.remove(data.draw(st.sampled_from(live)))

    @rule()
    def step(self) -> None:
        while len(self.in_flight) < self.depth + self.lookahead and self._submit():
            pass
        assert self.in_flight or not (self.scheduler.running or self.scheduler.waiting)
        if self.in_flight:
            self._collect()

    @precondition(lambda self: self.scheduler.running)
    @rule()
    def abandon(self) -> None:
        """A step found no memory: all begin anew, with less at once."""
        self.scheduler.abandon(self.in_flight)
        self.in_flight.clear()
        self.scheduler.shrink()
        assert not self.scheduler.running
        assert self.kv.used == 0

    @rule()
    def grow(self) -> None:
        self.scheduler.grow()

    def token(self, _: Sequence) -> int:
        """What a sequence generates next."""
        return 0

    def ends(self, _: Sequence) -> bool:
        """Whether a sequence's newest token ended it."""
        return False

    def is_finite(self, _: Sequence, computed: int) -> bool:
        """Whether the logits after so many tokens of a sequence are."""
        return computed > 0

    def _submit(self) -> bool:
        running = len(self.scheduler.running)
        step = self.scheduler.schedule()
        if step is None:
            return False
        assert 0 < sum(chunk.count for chunk in step.chunks) <= BUDGET or step.decodes
        busy = [*step.decodes, *(chunk.sequence for chunk in step.chunks)]
        assert len(busy) == len(set(map(id, busy)))
        if not self.lookahead:
            # Only tokens of a prompt are known while others of it are in flight.
            ahead = {id(s) for other in self.in_flight for s in _busy(other)}
            assert not any(id(s) in ahead for s in step.decodes)
            sampled = {id(s) for other in self.in_flight for s in other.sampled}
            assert not any(id(s) in sampled for s in busy)
        assert len(step.decodes) <= -(-running // self.depth)
        for sequence in busy:
            assert _holds(sequence) >= sequence.computed + sequence.in_flight > sequence.computed
            # Tokens that can't come are not computed.
            assert sequence.next_index < sequence.params.max_tokens
        self.in_flight.append(step)
        return True

    def _collect(self) -> None:
        step = self.in_flight.popleft()
        counts = [1 for _ in step.decodes] + [chunk.count for chunk in step.chunks if chunk.completes]
        finite = [self.is_finite(s, s.computed + count) for s, count in zip(step.sampled, counts, strict=True)]
        self.scheduler.complete(step, finite)
        for sequence, is_finite in zip(step.sampled, finite, strict=True):
            if sequence.place is None:
                continue
            if not is_finite:
                self.scheduler.remove(sequence)
                continue
            assert sequence.pending == 0
            sequence.append(self.token(sequence))
            if sequence.is_complete or self.ends(sequence):
                self.scheduler.remove(sequence)

    @invariant()
    def slots_are_not_shared(self) -> None:
        running = self.scheduler.running
        assert len(running) <= SLOTS
        assert all(sequence.place is not None and sequence.computed < len(sequence.tokens) for sequence in running)
        assert all(sequence.place is None and sequence.computed == 0 for sequence in self.scheduler.waiting)

    @invariant()
    def memory_is_not_shared_but_for_equal_beginnings(self) -> None:
        running = self.scheduler.running
        blocks = sorted(s.place for s in running if isinstance(s.place, Block))
        assert all(a.offset + a.size <= b.offset for a, b in itertools.pairwise(blocks))
        owner: dict[int, list[int]] = {}
        for sequence in running:
            if isinstance(sequence.place, Pages):
                for i, page in enumerate(sequence.place.table):
                    texts = sequence.tokens[: (i + 1) * PAGE]
                    assert owner.setdefault(page, texts) == texts or page not in owner
        pages = {page for s in running if isinstance(s.place, Pages) for page in s.place.table}
        assert self.kv.used == sum(block.size for block in blocks) + PAGE * len(pages) <= CAPACITY

    @invariant()
    def nobody_is_overtaken(self) -> None:
        waiting = [sequence.arrival for sequence in self.scheduler.waiting]
        assert waiting == sorted(waiting)
        running = [sequence.arrival for sequence in self.scheduler.running]
        assert running == sorted(running)
        if waiting and self.depth == 1:
            assert all(arrival < waiting[0] for arrival in running)

    def teardown(self) -> None:
        steps = 0
        while self.scheduler.running or self.scheduler.waiting:
            self.step()
            steps += 1
            assert steps < 300 * len(self.added) + 1
        assert self.kv.used == 0
        whole = Sequence("whole", 1, [9] * (self.kv.largest - 1), SamplingParams(max_tokens=1))
        assert self.kv.admit(whole), "memory was lost"


def _busy(step: Step) -> list[Sequence]:
    return [*step.decodes, *(chunk.sequence for chunk in step.chunks)]


def _holds(sequence: Sequence) -> int:
    """Tokens that its memory holds."""
    assert sequence.place is not None
    return sequence.place.size if isinstance(sequence.place, Block) else PAGE * len(sequence.place.table)
