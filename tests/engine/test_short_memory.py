"""What the engine does when a step finds no memory, shown on the synthetic model: nothing is lost, and all goes on."""

from __future__ import annotations

import pytest

from farm.settings import EngineSettings
from tests.engine.driving import add, drive, one
from workers.engine.engine import Engine
from workers.engine.kv.contiguous import ContiguousKV
from workers.engine.model import OutOfMemory, Pick
from workers.engine.scheduler import Step
from workers.engine.synthetic import Synthetic

pytestmark = pytest.mark.fast


class Short(Synthetic):
    """A model whose steps of more than ``least`` tokens find no memory, while ``shortage`` lasts."""

    least = 0
    shortage = True

    def run(self, step: Step) -> list[Pick]:
        if self.shortage and step.tokens > self.least:
            raise OutOfMemory("no memory")
        return super().run(step)


def short(least: int) -> Engine:
    """An engine that runs out of memory above so many tokens a step, until told otherwise."""
    model = Short(EngineSettings(max_slots=8, max_context=128))
    model.least = least
    return Engine(model, prefill_budget=64)


def test_a_step_without_memory_is_tried_again_with_less_at_once() -> None:
    """Nothing is lost: every job gets its tokens, the shortages are counted, and later steps grow again."""
    engine = short(least=16)
    adds = [add(str(i), f"prompt {i} " + "word " * 30, max_tokens=40) for i in range(8)]
    said = drive(engine, adds)
    expected = drive(Engine(Synthetic(EngineSettings(max_slots=8, max_context=128)), prefill_budget=64), adds)
    assert {id: one.ids for id, one in said.items()} == {id: one.ids for id, one in expected.items()}
    assert engine.stats.out_of_memory >= 2
    assert engine.stats.preemptions > 0
    assert isinstance(engine.model, Short)
    engine.model.shortage = False
    one(engine, "some words", max_tokens=120)
    shortages = engine.stats.out_of_memory
    for i in range(3):
        one(engine, f"words {i}", max_tokens=120)
    more = drive(engine, [add(str(i), "some words", max_tokens=100) for i in range(8)])
    assert len(more) == 8
    assert engine.stats.out_of_memory == shortages


def test_a_job_that_never_finds_memory_fails_and_may_be_tried_elsewhere() -> None:
    """When nothing less can be tried the oldest job is answered with a retryable error, and the next one goes on."""
    engine = short(least=20)
    said = drive(engine, [add("large", [1] * 60, max_tokens=2), add("small", [1] * 3, max_tokens=2)])
    assert said["small"].reason == "length"
    assert said["large"].reason == "length", "a prompt is computed in smaller parts"
    engine = short(least=0)
    said = drive(engine, [add("a"), add("b")])
    assert [one.failed is not None and one.failed.code for one in said.values()] == ["out_of_memory"] * 2
    assert all(one.failed is not None and one.failed.retryable for one in said.values())


def test_memory_for_keys_and_values_never_runs_out() -> None:
    """More text at once than memory holds is generated in turns: the youngest gives way and goes on later."""
    model = Synthetic(EngineSettings(max_slots=8, max_context=256))
    model.memory = lambda: ContiguousKV(512)  # type: ignore[method-assign]
    engine = Engine(model, prefill_budget=64)
    adds = [add(str(i), f"prompt {i}", max_tokens=200) for i in range(8)]
    said = drive(engine, adds)
    assert all(len(one.ids) == 200 for one in said.values())
    assert engine.stats.preemptions > 0
    alone = one(
        Engine(Synthetic(EngineSettings(max_slots=1, max_context=256)), prefill_budget=64), "prompt 7", max_tokens=200
    )
    assert said["7"].ids == alone.ids
