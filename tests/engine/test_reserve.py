"""The memory that logits take beside weights, keys and values is what the plan keeps for them, buffer by buffer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.workload import save_bloom
from farm.errors import ModelRefused
from farm.settings import EngineSettings, ModelSettings
from tests.engine.driving import bloom
from workers.engine import loading
from workers.engine.checkpoint import BloomConfig
from workers.engine.kernels.linear import Linear
from workers.engine.loading import place
from workers.engine.planner import plan_shards
from workers.engine.presets import PRESETS
from workers.engine.protocol import SamplingParams
from workers.engine.reserve import SAMPLING, gathered_bytes, head_bytes, logits_bytes, reserved, with_reserve
from workers.engine.sampler import begin
from workers.engine.sequence import Sequence
from workers.engine.shard_plan import Device, ModelTooLarge
from workers.engine.tensor_parallel.plan import plan_ranks

GIB = 1 << 30
BLOOM_7B1 = PRESETS["bigscience/bloom-7b1"]
VOCAB = 250_880


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes of tensors that a call held at once, beside what was there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    assert found.profiler is not None
    held = most = 0
    for event in found.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.parametrize(
    ("params", "share"),
    [
        ({"top_p": 0.9, "logprobs": 5}, 1.0),
        ({"top_p": 0.9999, "repetition_penalty": 1.2, "frequency_penalty": 0.5, "logprobs": 5}, 1.0),
        ({"top_k": 1024, "logprobs": 5}, 0.6),
        ({}, 0.7),
    ],
    ids=["top_p and logprobs", "a flat nucleus and penalties", "top_k", "temperature alone"],
)
def test_drawing_holds_the_copies_that_are_counted(params: dict[str, Any], share: float) -> None:
    """Rows that ask for everything take all of it, within the candidates' hundredth; others less."""
    rows, vocab = 64, 64_000
    sequences = [
        Sequence(str(row), 2, [1, 2], SamplingParams(max_tokens=9, temperature=1.0, seed=row, **params))
        for row in range(rows)
    ]
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0))
    counted = sum(SAMPLING.values()) * rows * vocab
    assert 0.8 * share * counted < peak_bytes(lambda: begin(logits, sequences, [0] * rows)) < 1.01 * share * counted


@pytest.mark.parametrize(
    ("dtype", "quantization"),
    [("float32", None), ("bfloat16", None), ("float16", None), ("bfloat16", "int8")],
)
def test_the_head_holds_what_is_counted(dtype: str, quantization: str | None) -> None:
    """Its product, and the same in fp32."""
    vocab, rows = 8_000, 32
    weight = torch.randn(vocab, 16).to(getattr(torch, dtype))
    head = Linear(weight, None, "torch", quantization)
    x = torch.randn(rows, 16).to(weight.dtype)
    found = peak_bytes(lambda: head.apply(x).float())
    assert found == pytest.approx(head_bytes(dtype, quantization) * rows * vocab, rel=0.02)


def test_decode_steps_write_their_logits_to_a_buffer_of_all_slots(tmp_path: Path) -> None:
    """In fp32, where the head is."""
    folder = save_bloom(tmp_path / "bloom", BloomConfig(vocab=300, hidden=32, layers=2, heads=4))
    model = bloom(folder, kv_layout="paged", lookahead=1, max_slots=6, devices=["cpu", "cpu"])
    assert model._launcher._shards[-1]._out.nbytes == 4 * 6 * 300


def test_64_slots_of_bloom_7b1_take_610_megabytes_of_logits() -> None:
    """By hand, for each slot and token: 2 + 4 bytes of a graph's head, 4 of its output, 4 of a step with prompts,
    4 of log probabilities, 4 drawn from, 4 of a short list, 4 + 8 of its weights: 38."""
    a_slot = (2 + 4 + 4 + 4 + 4 + 4 + 4 + 4 + 8) * VOCAB
    assert logits_bytes(VOCAB, 64, "bfloat16") == 64 * a_slot == 610_140_160
    assert logits_bytes(VOCAB, 64, "float32") == 64 * 36 * VOCAB
    # An 8-bit head: its product in int32 and fp32, the scales, and the logits, in place of 2 + 4.
    assert logits_bytes(VOCAB, 64, "bfloat16", "int8") == 64 * (a_slot + 10 * VOCAB)


@pytest.mark.parametrize("slots", [1, 64, 256, 1024])
def test_room_for_logits_grows_with_the_slots_where_the_head_is(slots: int) -> None:
    """And nowhere else: what 256 slots need is more than the flat reserve, on one device of two."""
    first, last = plan_shards(
        BLOOM_7B1, "bfloat16", [Device("cuda:0", 80 * GIB), Device("cuda:1", 80 * GIB)], slots=slots
    ).stages
    assert (first.logits_bytes, last.logits_bytes) == (0, slots * 38 * VOCAB)
    assert first.kv_bytes == 79 * GIB - first.weight_bytes
    assert last.kv_bytes == 79 * GIB - last.weight_bytes - slots * 38 * VOCAB


def test_fewer_slots_are_named_where_they_would_do() -> None:
    """A card that holds the model and one sequence, and not the logits of so many slots."""
    device = [Device("cuda:0", 17 * GIB)]
    with pytest.raises(
        ModelTooLarge, match=r"bytes are missing on cuda:0; .*fewer slots \(FARM_ENGINE__MAX_SLOTS\)"
    ) as said:
        plan_shards(BLOOM_7B1, "bfloat16", device, slots=256)
    plan_shards(BLOOM_7B1, "bfloat16", [Device("cuda:0", 17 * GIB + said.value.missing[0])], slots=256)
    plan_shards(BLOOM_7B1, "bfloat16", device, slots=64)
    with pytest.raises(ModelTooLarge) as other:
        plan_shards(BLOOM_7B1, "bfloat16", [Device("cuda:0", 14 * GIB)])
    assert "fewer slots" not in str(other.value)


def test_rank_0_keeps_room_for_all_parts_of_the_logits() -> None:
    """By hand: its own quarter twice in fp32, then all quarters apart and side by side."""
    devices = [Device(f"cuda:{number}", 8 * GIB) for number in range(4)]
    stages = plan_ranks(BLOOM_7B1, "bfloat16", devices, slots=64).stages
    own = 64 * 8 * VOCAB // 4
    assert [stage.logits_bytes for stage in stages] == [own + 64 * 8 * VOCAB, own, own, own]
    assert stages[1].kv_bytes - stages[0].kv_bytes == 64 * 8 * VOCAB
    assert gathered_bytes(5, 1, 1, 2) == 2 * 4 * 3


def test_a_worker_plans_with_its_own_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """FARM_ENGINE__MAX_SLOTS decides what a GPU keeps; a CPU's keys and values take a quarter, and need no reserve."""
    shape = BloomConfig(vocab=5000, hidden=64, layers=2, heads=4)
    monkeypatch.setattr(loading, "own_devices", lambda: [Device("cuda:0", GIB)])
    for slots in (8, 64):
        placed = place(shape, ModelSettings(), EngineSettings(max_slots=slots))
        assert placed.plan.stages[0].logits_bytes == slots * 38 * 5000
    with pytest.raises(ModelRefused, match="fewer slots"):
        place(BloomConfig(vocab=50_000, hidden=64, layers=2, heads=4), ModelSettings(), EngineSettings(max_slots=1024))
    monkeypatch.setattr(loading, "own_devices", lambda: [Device("cpu", GIB)])
    assert place(shape, ModelSettings(), EngineSettings()).plan.stages[0].logits_bytes == 0


def test_a_reserve_is_kept() -> None:
    """A gibibyte of a large device and an eighth of a small one stay free, unless told otherwise."""
    assert reserved(80 * GIB, None) == reserved(8 * GIB, None) == GIB
    assert reserved(4 * GIB, None) == GIB // 2
    assert reserved(4 * GIB, 7) == 7
    for need in (1, 1000, 7 * GIB - 1, 7 * GIB, 50 * GIB):
        assert with_reserve(need, None) - reserved(with_reserve(need, None), None) >= need
