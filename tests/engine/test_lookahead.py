"""Steps that run ahead of the tokens they follow on: nobody reads or writes another's memory, and everyone finishes."""

from __future__ import annotations

import itertools
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.settings import EngineSettings
from tests.engine.driving import Said, drive, gather
from tests.engine.schedules import Schedules
from workers.engine.engine import Engine
from workers.engine.kv.manager import Clear
from workers.engine.kv.paged import PAGE, PagedKV
from workers.engine.layout import Layout, Span, lay_out
from workers.engine.protocol import Add, SamplingParams
from workers.engine.scheduler import Step
from workers.engine.sequence import Pages, Sequence
from workers.engine.synthetic import Synthetic

pytestmark = pytest.mark.fast

NAN = "NaN"


class Ahead(Schedules):
    """Every step writes its rows into a memory when it is collected, and must find there what its sequences wrote.

    A third of the texts end by a token, so that a step in flight goes on with a text that has ended. A quarter are not
    finite from some token on. What nobody may rely on, theirs and what comes after an end, is NaN.
    """

    kind, lookahead = PagedKV, 1

    def __init__(self) -> None:
        super().__init__()
        self.memory: dict[tuple[int, int], object] = {}
        self.layouts: deque[tuple[Layout, list[Sequence]]] = deque()

    def token(self, sequence: Sequence) -> int:
        return len(sequence.tokens) * 7 % 90 + 10

    def ends(self, sequence: Sequence) -> bool:
        return int(sequence.id) % 3 == 0 and sequence.output_tokens >= 3

    def is_finite(self, sequence: Sequence, computed: int) -> bool:
        return int(sequence.id) % 4 or computed <= sequence.prompt_tokens // 2 + 20

    def abandon(self) -> None:
        super().abandon()
        for layout, _ in self.layouts:
            for span in layout.spans:
                self._write(span, [])
        self.layouts.clear()

    def _submit(self) -> bool:
        oldest = next(iter(self.scheduler.running), None)
        has_step = super()._submit()
        assert oldest is None or oldest.place is not None, "the oldest gave way to younger ones"
        if not has_step:
            return False
        step = self.in_flight[-1]
        self.layouts.append((lay_out(step), [*step.decodes, *(chunk.sequence for chunk in step.chunks)]))
        return True

    def _collect(self) -> None:
        layout, sequences = self.layouts.popleft()
        for change in layout.changes:
            assert isinstance(change, Clear)
            assert isinstance(change.place, Pages)
            for cell in itertools.product(change.place.table, range(PAGE)):
                self.memory.pop(cell, None)
        pairs = list(zip(layout.spans, sequences, strict=True))
        for span, sequence in pairs:
            keys = [] if sequence.place is None else _keys(sequence)
            self._write(span, [key for i, key in enumerate(keys) if self.is_finite(sequence, i + 1)])
        for span, sequence in pairs:
            if sequence.place is not None and self.is_finite(sequence, span.start + span.count):
                found = [self.memory[_at(span, position)] for position in range(span.start + span.count)]
                assert found == _keys(sequence)[: len(found)], "another sequence wrote here"
                cells = itertools.product(span.place.table, range(PAGE))
                assert NAN not in (self.memory.get(cell) for cell in cells), "another sequence left this"
        super()._collect()

    def _write(self, span: Span, keys: list[int]) -> None:
        for position in range(span.start, span.start + span.count):
            self.memory[_at(span, position)] = keys[position] if position < len(keys) else NAN


def _keys(sequence: Sequence) -> list[int]:
    """What stands for the keys of its known tokens: each follows from all tokens up to its own."""
    return list(itertools.accumulate(sequence.tokens, lambda key, token: hash((key, token))))


def _at(span: Span, position: int) -> tuple[int, int]:
    assert isinstance(span.place, Pages)
    return span.place.table[position // PAGE], position % PAGE


class _TwoStages(Ahead):
    depth = 2


TestAhead = Ahead.TestCase
TestTwoStagesAhead = _TwoStages.TestCase
TestAhead.settings = TestTwoStagesAhead.settings = settings(max_examples=30, stateful_step_count=40)


class _Model(Synthetic):
    """The synthetic model over pages, run ahead or not. Notes for how many rows the token before was not known."""

    def __init__(self, lookahead: int, kv_tokens: int) -> None:
        super().__init__(EngineSettings(max_slots=4, max_context=128))
        self.lookahead = lookahead
        self.unknown = 0
        self._kv_tokens = kv_tokens

    def memory(self) -> Any:
        return PagedKV(self._kv_tokens)

    def submit(self, step: Step) -> None:
        self.unknown += len(lay_out(step).unknown)
        super().submit(step)


_ADDS = st.lists(
    st.builds(
        lambda prompt, tokens, stop, ids, penalty: (
            prompt,
            SamplingParams(
                max_tokens=tokens, stop=stop, stop_token_ids=ids, min_tokens=min(2, tokens), frequency_penalty=penalty
            ),
        ),
        st.lists(st.integers(0, 3), min_size=1, max_size=60),
        st.integers(1, 40),
        st.sampled_from([(), (" the",), (" over hills",)]),
        st.sampled_from([(), tuple(range(0, 512, 9))]),
        st.sampled_from([0.0, 0.0, 0.0, 0.5]),
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=60, deadline=None)
@given(requests=_ADDS, arrive=st.lists(st.integers(0, 30), max_size=7))
def test_running_ahead_changes_nothing_that_is_said(
    requests: list[tuple[list[int], SamplingParams]], arrive: list[int]
) -> None:
    """Tokens, texts and reasons are those of one step at a time, also when memory is short and texts end by a stop."""
    adds = [Add(str(i), prompt, params) for i, (prompt, params) in enumerate(requests)]
    said = [
        drive(Engine(_Model(lookahead, 128), prefill_budget=24), adds, arrive=arrive[: len(adds)])
        for lookahead in (0, 1)
    ]
    assert said[0] == said[1]
    assert all(one.reason in ("stop", "length") for one in said[1].values())


def test_steps_do_run_ahead_and_no_step_is_for_nothing_but_after_a_stop() -> None:
    """All but the first token of a text of known length is computed before its predecessor is known, in as many steps
    as without; penalties, which count tokens, keep a sequence in step."""
    model = _Model(1, 512)
    engine = Engine(model, prefill_budget=64)
    drive(engine, [Add("a", [1, 2], SamplingParams(max_tokens=20)), Add("b", [3], SamplingParams(max_tokens=20))])
    assert (model.unknown, engine.generated, engine.steps) == (38, 40, 20)
    drive(engine, [Add("c", [1, 2], SamplingParams(max_tokens=20, repetition_penalty=1.5))])
    assert model.unknown == 38


def test_a_job_that_is_cancelled_or_too_late_with_a_step_ahead_is_gone_at_once() -> None:
    """Nothing is said of what was in flight for it, its memory is free, and its neighbour goes on."""
    now = [100.0]
    engine = Engine(_Model(1, 512), prefill_budget=64, clock=lambda: now[0])
    for id, deadline_s in (("cancelled", None), ("late", 5.0), ("stays", None)):
        engine.add(Add(id, [1, 2, 3], SamplingParams(max_tokens=30), deadline_s=deadline_s))
    said: dict[str, Said] = {}
    for _ in range(4):
        gather(engine.step(), said)
    engine.cancel("cancelled")
    now[0] += 6
    before = len(said["cancelled"].ids)
    while engine.has_work:
        gather(engine.step(), said)
    assert (len(said["cancelled"].ids), said["late"].reason, said["stays"].reason) == (before, "expired", "length")
    assert len(said["stays"].ids) == 30
    assert engine.stats.kv_tokens == 0
