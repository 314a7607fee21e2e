"""On a real GPU: what the tests of ``gpu`` show on a CPU, with graphs, streams and compiled kernels."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.byte_bpe import FIRST_BYTE
from benchmarks.workload import save_bloom
from farm.settings import EngineSettings, ModelSettings
from tests.engine import reference
from tests.engine.driving import bloom, drive
from workers.engine.bloom import Bloom
from workers.engine.checkpoint import BloomConfig
from workers.engine.engine import Engine
from workers.engine.layout import Layout, Span
from workers.engine.protocol import Add, SamplingParams
from workers.engine.sequence import Pages

pytestmark = pytest.mark.gpu

SHAPE = BloomConfig(vocab=421, hidden=256, layers=3, heads=4)


def _model(folder: Path, **engine: Any) -> Bloom:
    settings = EngineSettings(**{"max_slots": 7, "max_context": 256, "devices": ["cuda:0"], **engine})
    model = Bloom(ModelSettings(id=str(folder), dtype="float32"), settings)
    assert model.ready.kernels.startswith("triton on cuda:0")
    return model


def _adds() -> list[Add]:
    rng = random.Random(5)
    prompts = [[rng.randrange(FIRST_BYTE, SHAPE.vocab) for _ in range(rng.choice([1, 7, 45, 90]))] for _ in range(9)]
    return [Add(str(i), prompt, SamplingParams(max_tokens=40, ignore_eos=True)) for i, prompt in enumerate(prompts)]


def _without_graphs(model: Bloom) -> Bloom:
    for shard in model._launcher._shards:
        assert shard._graphs
        shard._graphs.clear()
    return model


@pytest.mark.parametrize("devices", [["cuda:0"], ["cuda:0", "cuda:0"]], ids=["one stage", "two stages"])
def test_graphs_and_single_launches_give_the_tokens_of_generate(devices: list[str], tmp_path: Path) -> None:
    """In float32, with padding, steps ahead and prompts in chunks."""
    folder = save_bloom(tmp_path / "bloom", SHAPE, seed=3, scale=6.0)
    model, adds = _model(folder, devices=devices), _adds()
    for graphs in (True, False):
        if not graphs:
            _without_graphs(model)
        said = drive(Engine(model, prefill_budget=24), adds, arrive=range(0, 27, 3))
        for add in adds:
            assert isinstance(add.prompt, list)
            reference.assert_same(folder, add.prompt, reference.generate(folder, add.prompt, 40), said[add.id].ids)
    torch.cuda.synchronize()


@torch.inference_mode()
def _logits(model: Bloom) -> Tensor:
    """Of 5 rows that decode over pages with the same numbers on any device: [5, vocab]."""
    [shard] = model._launcher._shards
    generator = torch.Generator().manual_seed(0)
    layout = Layout(
        [5, 6, 7, 8, 9], [Span(Pages([3 * row, 3 * row + 1]), row * 4) for row in range(5)], 5, [*range(5)], []
    )
    with shard.lane.enter():
        for layer in shard._pages.layers:
            assert layer.scales is not None
            numbers = torch.randint(120, layer.numbers.shape, generator=generator, dtype=torch.uint8)
            layer.numbers.copy_(numbers.view(layer.numbers.dtype))
            layer.scales.fill_(0.02)
        shard.take(layout, torch.tensor(layout.ids))
        return shard.run(layout).cpu()


@pytest.mark.parametrize("kv_dtype", ["int8", "fp8"])
def test_keys_and_values_in_8_bits_are_those_of_the_cpu(kv_dtype: str, tmp_path: Path) -> None:
    """A graph gives the bits that single launches give, and the logits are those of torch on the CPU."""
    folder = save_bloom(tmp_path / "bloom", SHAPE, seed=3, scale=6.0)
    sizes = {"kv_dtype": kv_dtype, "kv_bytes": 1 << 20, "max_slots": 7}
    model = _model(folder, **sizes)
    graph = _logits(model)
    assert torch.equal(graph, _logits(_without_graphs(model)))
    there = bloom(folder, **sizes, lookahead=1, devices=["cpu"])
    assert (graph - _logits(there)).abs().max() < 0.01 * graph.std()
