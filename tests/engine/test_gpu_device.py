"""On a real GPU: what the tests of ``gpu`` show on a CPU, with graphs, streams and compiled kernels."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from benchmarks.byte_bpe import FIRST_BYTE
from benchmarks.workload import save_bloom
from farm.settings import EngineSettings, ModelSettings
from tests.engine import reference
from tests.engine.driving import drive
from workers.engine.bloom import Bloom
from workers.engine.checkpoint import BloomConfig
from workers.engine.engine import Engine
from workers.engine.protocol import Add, SamplingParams

pytestmark = pytest.mark.gpu

SHAPE = BloomConfig(vocab=421, hidden=256, layers=3, heads=4)


@pytest.mark.parametrize("devices", [["cuda:0"], ["cuda:0", "cuda:0"]], ids=["one stage", "two stages"])
def test_graphs_and_single_launches_give_the_tokens_of_generate(devices: list[str], tmp_path: Path) -> None:
    """In float32, with padding, steps ahead and prompts in chunks."""
    folder = save_bloom(tmp_path / "bloom", SHAPE, seed=3, scale=6.0)
    rng = random.Random(5)
    prompts = [[rng.randrange(FIRST_BYTE, SHAPE.vocab) for _ in range(rng.choice([1, 7, 45, 90]))] for _ in range(9)]
    adds = [Add(str(i), prompt, SamplingParams(max_tokens=40, ignore_eos=True)) for i, prompt in enumerate(prompts)]
    model = Bloom(
        ModelSettings(id=str(folder), dtype="float32"), EngineSettings(max_slots=7, max_context=256, devices=devices)
    )
    assert model.ready.kernels.startswith("triton on cuda:0")
    for graphs in (True, False):
        if not graphs:
            for shard in model._launcher._shards:
                shard._graphs.clear()
        said = drive(Engine(model, prefill_budget=24), adds, arrive=range(0, 27, 3))
        for add, prompt in zip(adds, prompts, strict=True):
            reference.assert_same(folder, prompt, reference.generate(folder, prompt, 40), said[add.id].ids)
    torch.cuda.synchronize()
