"""Stages at work on several steps at once: order, errors, and steps without memory."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.byte_bpe import FIRST_BYTE
from benchmarks.workload import save_bloom
from tests.conftest import wait_until
from tests.engine import reference
from tests.engine.driving import Said, bloom, drive, gather
from workers.engine.checkpoint import BloomConfig
from workers.engine.engine import Engine
from workers.engine.layout import Layout
from workers.engine.pipeline import Pipeline
from workers.engine.protocol import Add, SamplingParams

SHAPE = BloomConfig(vocab=300, hidden=48, layers=4, heads=3)


def _layout(number: int) -> Layout:
    return Layout([number], [], 1, [0], [])


class _Adds:
    """A stage that adds one, and notes which steps it saw; it can be held and can fail."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.seen: list[int] = []
        self.fails_at = fails_at
        self.may_run = threading.Event()
        self.may_run.set()

    def run(self, layout: Layout, hidden: Tensor | None) -> Tensor:
        self.may_run.wait(10)
        self.seen.append(layout.ids[0])
        if layout.ids[0] == self.fails_at:
            raise RuntimeError("stage broke")
        return torch.tensor([float(layout.ids[0])]) if hidden is None else hidden + 1


def test_every_stage_sees_every_step_in_order_and_they_overlap() -> None:
    """While the second stage is busy with a step, the first one goes on with the next."""
    first, second = _Adds(), _Adds()
    pipeline = Pipeline([first, second], threads=2)
    assert pipeline.depth == 2
    second.may_run.clear()
    pipeline.submit(_layout(1))
    pipeline.submit(_layout(2))
    wait_until(lambda: len(first.seen) == 2, why="the first stage to go on")
    assert second.seen == []
    second.may_run.set()
    assert [pipeline.collect()[0].item() for _ in range(2)] == [2.0, 3.0]
    assert first.seen == second.seen == [1, 2]


class _OnGpu:
    """A stage whose device still computes when its kernels are launched."""

    def run(self, *_: object) -> Any:
        return SimpleNamespace(device=torch.device("cuda:1"))


def test_the_seconds_of_a_stage_are_those_of_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of launching its kernels: the clock is read when the device is done."""
    now = 0.0

    def synchronize(device: torch.device) -> None:
        nonlocal now
        assert device.index == 1
        now += 5.0

    monkeypatch.setattr("workers.engine.pipeline.time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    pipeline = Pipeline([_OnGpu()], threads=1)
    pipeline.submit(_layout(1))
    assert pipeline.collect()[1] == [5.0]


@pytest.mark.parametrize("stages", [1, 3])
def test_an_error_in_a_stage_reaches_whoever_collects(stages: int) -> None:
    """The step that failed raises; the others, and steps that are dropped, don't disturb what follows."""
    pipeline = Pipeline([_Adds(fails_at=2) for _ in range(stages)], threads=1)
    pipeline.submit(_layout(1))
    assert pipeline.collect()[0].item() == stages
    pipeline.submit(_layout(2))
    pipeline.submit(_layout(3))
    with pytest.raises(RuntimeError, match="stage broke"):
        pipeline.collect()
    pipeline.drop()
    pipeline.submit(_layout(4))
    assert pipeline.collect()[0].item() == 3 + stages


@pytest.mark.parametrize("devices", [["cpu"], ["cpu", "cpu"]], ids=["one stage", "two stages"])
def test_no_memory_in_a_step_changes_no_token(
    devices: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own word for a full memory makes the engine compute less at once, and every job is answered."""
    folder = save_bloom(tmp_path / "bloom", SHAPE, scale=6.0)
    rng = random.Random(2)
    adds = [
        Add(
            str(i),
            [rng.randrange(FIRST_BYTE, SHAPE.vocab) for _ in range(rng.randint(20, 60))],
            SamplingParams(max_tokens=20, ignore_eos=True),
        )
        for i in range(6)
    ]
    model = bloom(folder, max_slots=6, devices=devices)
    submit = model._launcher._pipeline.submit

    def scarce(layout: Layout) -> None:
        if len(layout.ids) > 24:
            shard = model._launcher._pipeline._shards[-1]
            monkeypatch.setattr(shard, "run", _full(shard.run, len(layout.ids)))
        submit(layout)

    monkeypatch.setattr(model._launcher._pipeline, "submit", scarce)
    engine = Engine(model, prefill_budget=64)
    said = drive(engine, adds)
    for add in adds:
        assert isinstance(add.prompt, list)
        reference.assert_same(folder, add.prompt, reference.generate(folder, add.prompt, 20), said[add.id].ids)
    assert engine.stats.out_of_memory > 0


def _full(run: Callable[[Layout, Tensor | None], Tensor], rows: int) -> Callable[[Layout, Tensor | None], Tensor]:
    """A stage's ``run`` that finds no memory for steps of so many rows."""

    def raises(layout: Layout, hidden: Tensor | None) -> Tensor:
        if len(layout.ids) >= rows:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return run(layout, hidden)

    return raises


def test_a_halt_takes_in_the_steps_in_flight(tmp_path: Path) -> None:
    """What two stages are working on is said before all is forgotten, and the next job finds an empty engine."""
    engine = Engine(bloom(save_bloom(tmp_path / "bloom", SHAPE), devices=["cpu", "cpu"]), 128)
    adds = [Add(name, [FIRST_BYTE + n] * 5, SamplingParams(max_tokens=60)) for n, name in enumerate("abcd")]
    for add in adds:
        engine.add(add)
    said: dict[str, Said] = {}
    for _ in range(12):
        gather(engine.step(), said)
    assert engine.running == 4
    before = engine.generated
    gather(engine.halt(), said)
    assert engine.generated > before
    assert engine.generated == sum(len(one.ids) for one in said.values())
    assert not engine.has_work
    assert drive(engine, adds)["a"].ids[:3] == said["a"].ids[:3]
