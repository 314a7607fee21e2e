"""What the parts of a Bloom weigh is what the engine loads and keeps, by accelerate's count and by its tensors."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FunctionType

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.workload import random_weights, save_bloom
from farm.errors import ModelRefused
from workers.engine.checkpoint import BloomConfig, find_checkpoint
from workers.engine.empty_model import EmptyModel
from workers.engine.kv.eight_bits import EightBitPages
from workers.engine.module_bytes import bytes_of_shapes
from workers.engine.planner import plan_shards
from workers.engine.presets import PRESETS, parameters
from workers.engine.shard_plan import Device
from workers.engine.stage import Stage
from workers.engine.weights import Weights

GIB = 1 << 30
BLOOM_7B1 = PRESETS["bigscience/bloom-7b1"]
SMALL = BloomConfig(vocab=300, hidden=32, layers=5, heads=4)


def gpus(*sizes: int) -> list[Device]:
    return [Device(f"cuda:{index}", size) for index, size in enumerate(sizes)]


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("bigscience/bloom") and "z" not in name])
def test_published_shapes_have_the_published_parameters(name: str) -> None:
    """Each shape that is built in counts as transformers' own model of it does, and Bloomz as its Bloom."""
    config = PRESETS[name]
    counted = EmptyModel(config, "bfloat16").model.num_parameters()
    assert parameters(config) == counted
    assert PRESETS[name.replace("bloom", "bloomz")] == config


def test_bloom_7b1_is_as_large_as_published() -> None:
    """7.069 G parameters, 14.14 GB in bfloat16, 480 KiB of keys and values per token."""
    plan = plan_shards(BLOOM_7B1, "bfloat16", gpus(80 * GIB))
    assert parameters(BLOOM_7B1) == 7_069_016_064
    assert plan.weight_bytes == 2 * 7_069_016_064
    assert plan.kv_token_bytes == 480 * 1024


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tied", [True, False])
def test_accelerate_and_the_engine_agree_on_bytes(dtype: str, tied: bool) -> None:
    """A module weighs the same by transformers' empty model as by the tensors that the engine reads."""
    config = BloomConfig(vocab=300, hidden=32, layers=2, heads=4, tied=tied)
    assert EmptyModel(config, dtype).module_bytes() == bytes_of_shapes(config, dtype)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_stage_weighs_what_it_loads(tied: bool, count: int) -> None:
    """The planned bytes are those of the checkpoint's tensors that the stage names, and stages name all tensors."""
    config = BloomConfig(vocab=300, hidden=32, layers=5, heads=4, tied=tied)
    weights = random_weights(config)
    plan = plan_shards(config, "float32", gpus(*[10_000_000] * count))
    assert len(plan.stages) == count
    for stage in plan.stages:
        assert stage.weight_bytes == sum(weights[name].nbytes for name in stage.tensors(config))
    assert {name for stage in plan.stages for name in stage.tensors(config)} == set(weights)


@pytest.mark.parametrize("tied", [True, False])
def test_a_stage_reads_no_tensor_of_another(tmp_path: Path, tied: bool) -> None:
    """A stage loads from a checkpoint in which everything that belongs to other stages is damaged."""
    config = BloomConfig(vocab=300, hidden=32, layers=5, heads=4, tied=tied)
    folder = save_bloom(tmp_path / "bloom", config)
    whole = load_file(folder / "model.safetensors")
    for stage in plan_shards(config, "float32", gpus(*[10_000_000] * 3)).stages:
        mine = set(stage.tensors(config))
        damaged = {name: whole[name] if name in mine else torch.full_like(whole[name], torch.nan) for name in whole}
        save_file(damaged, folder / "model.safetensors")
        with Weights(find_checkpoint(str(folder)), torch.float32) as weights:
            for name in mine:
                assert torch.equal(weights.take(name), whole[name])
            with pytest.raises(ModelRefused, match="NaN"):
                weights.take(next(name for name in whole if name not in mine))


@pytest.mark.gpu
def test_tensors_are_given_out_on_a_device(tmp_path: Path) -> None:
    """Weights for a GPU arrive there, in the engine's dtype, and are checked there."""
    folder = save_bloom(tmp_path / "bloom", SMALL)
    whole = load_file(folder / "model.safetensors")
    with Weights(find_checkpoint(str(folder)), torch.bfloat16, "cuda:0") as weights:
        for name, tensor in whole.items():
            taken = weights.take(name)
            assert taken.device == torch.device("cuda:0")
            assert torch.equal(taken.cpu(), tensor.to(torch.bfloat16))


def test_safetensors_itself_reads_to_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is opened for the GPU that its tensors go to, so that none is first a tensor in the machine's memory."""
    folder = save_bloom(tmp_path / "bloom", SMALL)
    opened: list[str] = []

    def opener(path: Path, *, framework: str, device: str) -> object:
        opened.append(device)
        return real(path, framework=framework)

    real = sys.modules[Weights.__module__].safe_open  # type: ignore[attr-defined]
    monkeypatch.setattr("workers.engine.weights.safe_open", opener)
    for device in ("cpu", "cuda:1", "mps"):
        Weights(find_checkpoint(str(folder)), torch.float32, device)
    assert opened == ["cpu", "cuda:1", "cpu"]


def test_an_engine_with_8_bits_takes_the_memory_that_was_planned(tmp_path: Path) -> None:
    """What its layers keep adds up to the plan's bytes, and so do its pages."""
    config = BloomConfig(vocab=300, hidden=64, layers=2, heads=4)
    plan = plan_shards(config, "bfloat16", gpus(GIB), quantization="int8", kv_dtype="int8")
    with Weights(find_checkpoint(str(save_bloom(tmp_path / "bloom", config))), torch.bfloat16) as weights:
        stage = Stage(weights, range(2), first=True, last=True, quantization="int8")
    pages = EightBitPages(2, 4, 16, 160, torch.bfloat16, torch.device("cpu"), torch.int8)
    assert _bytes_in(stage) == plan.weight_bytes
    assert _bytes_in(pages) - _bytes_in(pages.slopes) == 160 * plan.kv_token_bytes


def _bytes_in(*roots: object) -> int:
    """Bytes of all tensors that can be reached from an object, functions' own variables among them."""
    storages: dict[int, int] = {}
    seen: set[int] = set()
    queue = list(roots)
    while queue:
        found = queue.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, torch.Tensor):
            storages[found.untyped_storage().data_ptr()] = found.untyped_storage().nbytes()
        elif isinstance(found, list | tuple):
            queue += found
        elif isinstance(found, FunctionType):
            queue += [cell.cell_contents for cell in found.__closure__ or ()]
        else:
            names = [*getattr(found, "__dict__", {}), *getattr(type(found), "__slots__", ())]
            queue += [getattr(found, name) for name in names]
    return sum(storages.values())
