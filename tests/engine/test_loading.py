"""Where a model goes, which kernels compute it, and what is refused before a weight is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.byte_bpe import FIRST_BYTE
from benchmarks.workload import save_bloom
from farm.errors import ModelRefused
from farm.settings import EngineSettings, ModelSettings, load_settings
from tests.engine.driving import bloom, one
from workers.engine import bloom as bloom_module
from workers.engine import devices, loading
from workers.engine.checkpoint import BloomConfig
from workers.engine.engine import Engine
from workers.engine.kv.contiguous import ContiguousKV
from workers.engine.kv.paged import PagedKV
from workers.engine.loading import Placement, place
from workers.engine.process import load_model
from workers.engine.shard_plan import Device

SHAPE = BloomConfig(vocab=300, hidden=64, layers=6, heads=4)


def placed(dtype: str = "auto", **engine: Any) -> Placement:
    return place(SHAPE, ModelSettings(dtype=dtype), EngineSettings(**engine))  # type: ignore[arg-type]


def test_a_model_is_cut_into_as_many_stages_as_devices_are_named() -> None:
    """Every layer once, the embedding first, the head last."""
    stages = placed(devices=["cpu", "cpu", "cpu"]).plan.stages
    assert [layer for stage in stages for layer in stage.layers] == list(range(6))
    assert [stage.has_embedding for stage in stages] == [True, False, False]
    assert [stage.has_head for stage in stages] == [False, False, True]
    assert len(placed().plan.stages) == 1


@pytest.mark.usefixtures("compiler")
def test_native_kernels_compute_contiguous_float32_unless_told_otherwise() -> None:
    """bfloat16, pages and FARM_ENGINE__NATIVE=off are torch's; the loaded model says which computes."""
    assert placed().is_native
    assert not placed(native="off").is_native
    assert not placed(dtype="bfloat16").is_native
    assert not placed(kv_layout="paged").is_native
    assert bloom("tiny-bloom").ready.kernels == "native on cpu"
    assert bloom("tiny-bloom", kv_layout="paged").ready.kernels == "torch on cpu"
    assert bloom("tiny-bloom", native="off", devices=["cpu", "cpu"]).ready.kernels == "torch on cpu, cpu"


def test_the_layout_decides_who_keeps_the_books() -> None:
    """Contiguous blocks by default on a CPU, pages when asked."""
    assert isinstance(placed().memory(caching=True), ContiguousKV)
    assert isinstance(placed(kv_layout="paged").memory(caching=True), PagedKV)


@pytest.mark.parametrize("name", ["cuda:97", "gpu", "cpu:1"])
def test_a_device_that_is_not_here_is_refused(name: str) -> None:
    """The reason names it and what is here."""
    with pytest.raises(ModelRefused, match=rf"'{name}'.* this machine has cpu"):
        placed(devices=["cpu", name])


def test_more_memory_for_keys_and_values_than_the_weights_leave_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason gives both sizes, the setting, and by how much to lower it; so much lower it is served."""
    monkeypatch.setattr(devices, "free_bytes", lambda: 10_000_000)
    monkeypatch.setattr(loading, "free_bytes", lambda: 10_000_000)
    with pytest.raises(ModelRefused, match=r"FARM_ENGINE__KV_BYTES asks for 9,900,000 bytes") as refused:
        placed(kv_bytes=9_900_000)
    found = re.search(r"lower it by ([\d,]+)", str(refused.value))
    assert found is not None
    assert placed(kv_bytes=9_900_000 - int(found[1].replace(",", ""))).kv_tokens > 0


def test_a_cpu_keeps_memory_for_half_of_the_slots_at_full_length() -> None:
    """For one slot its whole context; more slots than that share."""
    assert [placed(max_slots=slots, max_context=100).kv_tokens for slots in (1, 2, 8)] == [128, 128, 512]


def test_a_model_that_does_not_fit_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason says how many bytes are missing, before a weight is read."""
    monkeypatch.setattr(devices, "free_bytes", lambda: 1_000_000)
    with pytest.raises(ModelRefused, match=r"[\d,]+\s+bytes are missing"):
        placed()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that seems to have a GPU of 1 GiB, and little memory of its own."""
    monkeypatch.setattr(loading, "own_devices", lambda: [Device("cuda:0", 1 << 30)])
    monkeypatch.setattr(loading, "free_bytes", lambda: 1 << 20)


@pytest.mark.usefixtures("gpu")
def test_a_gpu_holds_whole_pages_of_what_its_own_memory_allows() -> None:
    """Whatever the machine's memory: all slots' contexts in whole pages, or what the setting says."""
    default = placed(max_slots=1, max_context=100)
    assert (default.kv_tokens, default.is_paged, default.dtype) == (112, True, torch.bfloat16)
    token_bytes = default.plan.kv_token_bytes
    assert placed(kv_bytes=100 * token_bytes).kv_tokens == 96
    with pytest.raises(ModelRefused, match="hold no block of 16 tokens"):
        place(BloomConfig(vocab=300, hidden=1024, layers=6, heads=4), ModelSettings(), EngineSettings(kv_bytes=1 << 16))
    with pytest.raises(ModelRefused, match="weights leave"):
        placed(kv_bytes=2 << 30)
    with pytest.raises(ModelRefused, match="contiguous is for CPUs"):
        placed(kv_layout="contiguous")


def test_int8_of_a_width_that_the_library_can_not_take_is_torchs() -> None:
    """No setting that torch can serve is refused."""
    odd = BloomConfig(vocab=300, hidden=42, layers=2, heads=3)
    assert not place(odd, ModelSettings(), EngineSettings(quantization="int8")).is_native


def test_no_memory_to_load_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker ends with the reason instead of starting the engine again for ever."""

    def full(*_: object) -> None:
        raise MemoryError("no threads")

    monkeypatch.setattr(bloom_module, "load_shards", full)
    with pytest.raises(ModelRefused, match="no memory to load tiny-bloom: no threads"):
        load_model(load_settings())


@pytest.mark.parametrize("native", ["auto", "off"])
def test_int8_is_another_model_that_says_nearly_the_same(native: str, tmp_path: Path) -> None:
    """It has a fingerprint of its own, and its logits are close to float32's."""
    folder = save_bloom(tmp_path / "bloom", SHAPE)
    prompt = list(range(FIRST_BYTE, FIRST_BYTE + 40))
    exact, rounded = bloom(folder, native=native), bloom(folder, native=native, quantization="int8")
    assert exact.ready.fingerprint != rounded.ready.fingerprint
    tops = [one(Engine(model, 64), prompt, max_tokens=1, logprobs=5).tokens[0].top for model in (exact, rounded)]
    wanted, got = (dict(top or []) for top in tops)
    common = wanted.keys() & got.keys()
    assert len(common) >= 3
    torch.testing.assert_close(
        torch.tensor([got[id] for id in common]), torch.tensor([wanted[id] for id in common]), atol=0.1, rtol=0.05
    )
