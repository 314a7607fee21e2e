"""The scheduler's promises, for any mix of requests: slots, memory, budget, order, and everyone finishes."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.engine.schedules import Schedules
from workers.engine.kv.arena import MIN_BLOCK
from workers.engine.kv.contiguous import ContiguousKV
from workers.engine.kv.paged import PAGE, PagedKV
from workers.engine.pacer import Pacer
from workers.engine.protocol import SamplingParams
from workers.engine.scheduler import Chunk, Scheduler, Step
from workers.engine.sequence import Sequence

pytestmark = pytest.mark.fast


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
TestContiguous.settings = TestPaged.settings = settings(max_examples=25, stateful_step_count=40)
TestThreeInFlight.settings = TestTwoInFlightPaged.settings = TestPaged.settings


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
