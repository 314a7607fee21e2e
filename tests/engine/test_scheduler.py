"""The scheduler's promises, for any mix of requests: slots, memory, budget, order, and everyone finishes."""

from __future__ import annotations

import itertools
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from workers.engine.kernels.grouping import group_rows
from workers.engine.kv.arena import MIN_BLOCK, Arena, Block
from workers.engine.kv.contiguous import ContiguousKV
from workers.engine.kv.paged import PAGE, PagedKV
from workers.engine.pacer import Pacer
from workers.engine.protocol import SamplingParams
from workers.engine.scheduler import Chunk, Scheduler, Step
from workers.engine.sequence import Pages, Sequence

pytestmark = pytest.mark.fast

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


class _PagedSchedules(Schedules):
    kind = PagedKV


class _DeepSchedules(Schedules):
    depth = 3


class _DeepPagedSchedules(Schedules):
    depth, kind = 2, PagedKV


TestContiguous = Schedules.TestCase
TestPaged = _PagedSchedules.TestCase
TestThreeInFlight = _DeepSchedules.TestCase
TestTwoInFlightPaged = _DeepPagedSchedules.TestCase
for _case in (TestContiguous, TestPaged, TestThreeInFlight, TestTwoInFlightPaged):
    _case.settings = settings(max_examples=25, stateful_step_count=40)


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


def _sequence(tokens: list[int], scope: str = "", max_tokens: int = 4) -> Sequence:
    return Sequence("s", len(tokens), tokens, SamplingParams(max_tokens=max_tokens), scope=scope)


def _prefill(scheduler: Scheduler, sequence: Sequence) -> list[int]:
    """Compute a sequence's prompt; returns the chunks' sizes."""
    scheduler.add(sequence)
    sizes = []
    while sequence.pending:
        step = scheduler.schedule()
        assert step is not None
        scheduler.complete(step, [True] * len(step.sampled))
        sizes += [chunk.count for chunk in step.chunks] + [1 for _ in step.decodes]
    return sizes


@pytest.mark.parametrize(("kind", "block"), [(ContiguousKV, MIN_BLOCK), (PagedKV, PAGE)])
def test_equal_beginnings_are_computed_once(kind: type[ContiguousKV] | type[PagedKV], block: int) -> None:
    """Full blocks that another prompt began with are not computed again, also after that one is gone; the last token
    always is, and texts of another scope share nothing."""
    kv = kind(2048)
    scheduler = Scheduler(8, kv, 1000)
    text = list(range(3 * block))
    first = _sequence([*text, 7])
    assert sum(_prefill(scheduler, first)) == 3 * block + 1
    assert sum(_prefill(scheduler, _sequence([*text, 8, 9]))) == 2
    scheduler.remove(first)
    assert sum(_prefill(scheduler, _sequence(text))) == block
    assert sum(_prefill(scheduler, _sequence([*text[: 2 * block], 5]))) == 1
    assert sum(_prefill(scheduler, _sequence([5, *text]))) == 3 * block + 1
    assert sum(_prefill(scheduler, _sequence(text, scope="another"))) == 3 * block
    assert scheduler.cached_tokens == 7 * block
    assert sum(_prefill(Scheduler(8, kind(2048, caching=False), 1000), _sequence(text))) == 3 * block


@pytest.mark.parametrize("kv", [ContiguousKV(512), PagedKV(384)])
def test_the_least_recently_used_prefix_goes_first(kv: ContiguousKV | PagedKV) -> None:
    """When memory runs short, what was used last is kept."""
    scheduler = Scheduler(8, kv, 1000)
    old, new = [1] * 129, [2] * 129
    for text in (old, new, old):
        sequence = _sequence(text)
        _prefill(scheduler, sequence)
        scheduler.remove(sequence)
    large = _sequence([3] * 190)
    _prefill(scheduler, large)
    scheduler.remove(large)
    assert sum(_prefill(scheduler, _sequence(old))) == 1
    assert sum(_prefill(scheduler, _sequence(new))) > 1


@pytest.mark.parametrize("kind", [ContiguousKV, PagedKV])
def test_the_youngest_gives_way_when_memory_runs_out(kind: type[ContiguousKV] | type[PagedKV]) -> None:
    """It keeps its tokens, waits at the head of the queue, and is computed again from them."""
    scheduler = Scheduler(8, kind(512), 1000)
    sequences = [_sequence([i] * 60, max_tokens=300) for i in range(8)]
    for sequence in sequences:
        scheduler.add(sequence)
    while not scheduler.preemptions:
        step = scheduler.schedule()
        assert step is not None
        sampled = step.sampled
        scheduler.complete(step, [True] * len(step.sampled))
        for sequence in sampled:
            sequence.append(0)
    assert scheduler.waiting[0] is sequences[len(scheduler.running)]
    assert scheduler.waiting[-1] is sequences[-1]
    preempted = scheduler.waiting[0]
    assert (preempted.place, preempted.computed) == (None, 0)
    assert len(preempted.tokens) >= 60


def test_long_prompts_are_paced_beside_decoding_sequences_only() -> None:
    """A prompt that fits the budget is computed at once; a longer one in paced chunks while others decode."""
    scheduler = Scheduler(8, ContiguousKV(8192), 128)
    scheduler.pace = 16
    assert _prefill(scheduler, _sequence([1] * 300)) == [128, 128, 44]
    scheduler.running[0].append(0)
    scheduler.add(_sequence([2] * 300))
    scheduler.add(_sequence([3] * 100))
    beside = scheduler.schedule()
    assert beside is not None
    assert len(beside.decodes) == 1
    assert [chunk.count for chunk in beside.chunks] == [16, 100]


def test_stages_share_out_prompts_as_they_share_out_decoding_sequences() -> None:
    """Beside decoding sequences a prompt is spread over steps, so that no stage waits for a neighbour with more to do;
    alone it is cut in as many parts as there are stages, and these follow each other without a wait."""
    scheduler = Scheduler(8, ContiguousKV(8192), 128, depth=2)
    scheduler.add(_sequence([1] * 120))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert first is not None
    assert second is not None
    assert [chunk.count for chunk in (*first.chunks, *second.chunks)] == [60, 60]
    beside = Scheduler(8, ContiguousKV(8192), 128, depth=2)
    for token in (1, 2):
        _prefill(beside, _sequence([token] * 5))
        beside.running[-1].append(0)
    beside.add(_sequence([3] * 120))
    for known in (16, 16, 16):
        step = beside.schedule()
        assert step is not None
        assert [chunk.count for chunk in step.chunks] == [known]


def test_the_pace_follows_what_steps_take() -> None:
    """A step with prompt tokens takes at most the set multiple of one without, as far as was seen."""
    pacer = Pacer(3.0, 128)
    decode = Step([_sequence([1])], [])
    assert pacer.tokens == 16
    pacer.observe(decode, 0.010)
    pacer.observe(Step(decode.decodes, [Chunk(_sequence([1] * 20), 20, True)]), 0.020)
    assert pacer.tokens == 40
    for _ in range(40):
        pacer.observe(Step(decode.decodes, [Chunk(_sequence([1] * 20), 20, True)]), 0.210)
    assert pacer.tokens == 16, "never less than what is worth a step"
    for _ in range(40):
        pacer.observe(Step(decode.decodes, [Chunk(_sequence([1] * 20), 20, True)]), 0.010)
    assert pacer.tokens == 128, "never more than the budget"


def test_prompts_beside_sequences_in_flight_are_paced_too() -> None:
    """A step without decoding sequences of its own still stands in the way of those of the step before it."""
    scheduler = Scheduler(8, ContiguousKV(8192), 128, depth=2)
    scheduler.pace = 16
    _prefill(scheduler, _sequence([1] * 5))
    scheduler.running[0].append(0)
    for token in (2, 3):
        scheduler.add(_sequence([token] * 1000))
    steps = [scheduler.schedule(), scheduler.schedule()]
    assert [[chunk.count for chunk in step.chunks] for step in steps if step] == [[16], [16]]


def test_a_long_prompt_keeps_its_own_beginning() -> None:
    """Where the cache can't hold all of a prompt, it holds the beginning, which the next one can use."""
    scheduler = Scheduler(8, ContiguousKV(640), 1000)
    for expected in (256, 128):
        sequence = _sequence([1] * 256, max_tokens=1)
        assert sum(_prefill(scheduler, sequence)) == expected
        scheduler.remove(sequence)
