"""Steps launched from static buffers, padded to buckets and ahead of known tokens, give the tokens of any others.

On a CPU: the same code computes each step as it is launched.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.byte_bpe import FIRST_BYTE
from benchmarks.workload import save_bloom
from farm.errors import ModelRefused
from tests.engine import reference
from tests.engine.driving import Said, bloom, drive, gather
from tests.engine.gpu import triton_attention
from workers.engine.bloom import Bloom
from workers.engine.checkpoint import BloomConfig
from workers.engine.engine import Engine
from workers.engine.gpu import runner
from workers.engine.gpu.attention import TorchAttention
from workers.engine.gpu.inputs import bucket_of, buckets
from workers.engine.layout import Layout, Span
from workers.engine.protocol import Add, SamplingParams
from workers.engine.sequence import Pages

SHAPE = BloomConfig(vocab=421, hidden=80, layers=3, heads=5)
TOKEN_BYTES = 2 * SHAPE.layers * SHAPE.hidden * 4

SAMPLED: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 1, "logprobs": 2},
    {"temperature": 0.8, "seed": 2, "top_k": 20, "stop_token_ids": tuple(range(4, 420, 9))},
    {"temperature": 1.2, "seed": 3, "top_p": 0.9, "min_tokens": 9, "stop_token_ids": tuple(range(4, 60))},
    {"temperature": 0.9, "seed": 4, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
    {"temperature": 1.5, "seed": 5, "stop": ("e", "a")},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bloom(tmp_path_factory.mktemp("bloom") / "bloom", SHAPE, seed=3, scale=6.0)


def _prompts(count: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    sizes = [rng.choice([1, 2, 7, 20, 45, 90]) for _ in range(count)]
    return [[rng.randrange(FIRST_BYTE, SHAPE.vocab) for _ in range(size)] for size in sizes]


def test_buckets_rise_to_the_slots_and_waste_little() -> None:
    """Every number of rows has a bucket, and from 16 on less than half of it is padding."""
    for slots in (1, 3, 16, 32, 100, 128, 300, 1024):
        found = buckets(slots)
        assert found == sorted(set(found))
        assert found[-1] == slots
        for rows in range(1, slots + 1):
            assert rows <= bucket_of(rows, slots) < max(2 * rows, 16)


LAYOUTS: dict[str, dict[str, Any]] = {
    "one at a time": {"lookahead": 1, "max_slots": 1},
    "ahead": {"lookahead": 1},
    "ahead, two stages": {"lookahead": 1, "devices": ["cpu", "cpu"]},
    "ahead, more stages than layers": {"lookahead": 1, "devices": ["cpu"] * 6},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_tokens_equal_generate_when_memory_runs_short(layout: dict[str, Any], folder: Path) -> None:
    """Padded steps, run ahead, with sequences that come, go and are preempted: the tokens of transformers' generate."""
    rng = random.Random(9)
    adds = [
        Add(str(i), prompt, SamplingParams(max_tokens=rng.randint(20, 70), ignore_eos=True))
        for i, prompt in enumerate(_prompts(10, seed=9))
    ]
    model = bloom(folder, **{"kv_layout": "paged", "max_slots": 7, "kv_bytes": 256 * TOKEN_BYTES, **layout})
    assert model.ready.kv_tokens == 256
    engine = Engine(model, prefill_budget=24)
    said = drive(engine, adds, arrive=[rng.randint(0, 30) for _ in adds])
    for add in adds:
        assert isinstance(add.prompt, list)
        expected = reference.generate(folder, add.prompt, add.params.max_tokens)
        reference.assert_same(folder, add.prompt, expected, said[add.id].ids)
    assert engine.stats.preemptions > 0 or layout.get("max_slots") == 1
    assert engine.stats.kv_tokens == 0


def _said(folder: Path, adds: list[Add], **settings: Any) -> dict[str, Said]:
    engine = Engine(bloom(folder, max_slots=6, **settings), prefill_budget=24)
    return drive(engine, adds, arrive=range(0, 3 * len(adds), 3))


def test_sampled_texts_are_those_of_the_cpu(folder: Path) -> None:
    """Seeds, cuts, penalties, stops and logprobs give what the CPU's own path gives, on each of 18 texts."""
    adds = [
        Add(str(i), prompt, SamplingParams(**{"max_tokens": 40, **SAMPLED[i % len(SAMPLED)]}))
        for i, prompt in enumerate(_prompts(18, seed=4))
    ]
    expected = _said(folder, adds)
    got = _said(folder, adds, kv_layout="paged", lookahead=1)
    for id, one in expected.items():
        assert (got[id].ids, got[id].text, got[id].reason) == (one.ids, one.text, one.reason)
        assert [t.logprob for t in got[id].tokens] == pytest.approx([t.logprob for t in one.tokens], abs=1e-4)
    assert {one.reason for one in expected.values()} == {"stop", "length"}


@pytest.mark.parametrize("kv_dtype", ["auto", "int8", "fp8"])
def test_triton_kernels_serve_a_whole_model(kv_dtype: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts in chunks, shared beginnings, decode rows in padded steps: the tokens of generate, or of torch."""
    expected = bloom(folder, kv_dtype=kv_dtype, max_slots=1, max_context=128) if kv_dtype != "auto" else None
    monkeypatch.setattr("workers.engine.loading.TorchAttention", type(triton_attention()))
    launched = {"kv_layout": "paged", "lookahead": 1, "kv_dtype": kv_dtype, "native": "off"}
    model = bloom(folder, **launched, max_slots=3, max_context=128)
    assert model.ready.kernels.startswith("triton on ")
    prompts = _prompts(3, seed=6)[0 if expected is None else 1 :]
    prompts.append(prompts[-1] + [30])
    adds = [Add(str(i), prompt, SamplingParams(max_tokens=5, ignore_eos=True)) for i, prompt in enumerate(prompts)]
    said = drive(Engine(model, prefill_budget=40), adds, arrive=[0, 0, 1, 6][-len(adds) :])
    for add, prompt in zip(adds, prompts, strict=True):
        if expected is not None:
            assert said[add.id].ids == drive(Engine(expected, prefill_budget=128), [add])[add.id].ids
        else:
            reference.assert_same(folder, prompt, reference.generate(folder, prompt, 5), said[add.id].ids)


def _launched(folder: Path, kv_dtype: str = "auto") -> Bloom:
    return bloom(folder, kv_layout="paged", kv_dtype=kv_dtype, lookahead=1, max_slots=8, kv_bytes=256 * TOKEN_BYTES)


@pytest.mark.parametrize("kv_dtype", ["auto", "int8", "fp8"])
@torch.inference_mode()
def test_padding_touches_no_page_that_a_sequence_may_hold(kv_dtype: str, folder: Path) -> None:
    """A step of 5 rows in a bucket of 8 writes 5 keys into its own pages, and else into a page of nobody's alone."""
    shard = _launched(folder, kv_dtype)._launcher._shards[0]
    buffers = [buffer for layer in shard._pages.layers for buffer in layer.tensors()]
    assert len(buffers) == SHAPE.layers * (1 if kv_dtype == "auto" else 2)
    for pages in buffers:
        pages.fill_(7)
    layout = Layout(
        [5, 6, 7, 8, 9], [Span(Pages([3 * row, 3 * row + 1]), row * 4) for row in range(5)], 5, [*range(5)], []
    )
    shard.take(layout, torch.tensor(layout.ids))
    expected = shard.run(layout).clone()
    assert expected.shape == (5, SHAPE.vocab)
    for pages in buffers:
        written = (pages != 7).any(-1).any(2).any(0)  # [pages, PAGE]
        assert written[:-1].nonzero().tolist() == [[3 * row + row * 4 // 16, row * 4 % 16] for row in range(5)]
        assert written[-1].nonzero().tolist() == [[0]]
        if pages.is_floating_point():
            pages[:, -1] = torch.nan
    shard.take(layout, torch.tensor(layout.ids))
    assert torch.equal(shard.run(layout), expected), "a row read the padding's page"


def test_a_step_of_each_kind_is_computed_before_the_first_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode rows and a prompt's rows at once, in the page that is nobody's: what compiles does so at load."""
    seen: list[str] = []

    class Seen(TorchAttention):
        def decode(self, *step: Any) -> None:
            seen.append("decode")
            super().decode(*step)

        def prefill(self, *step: Any) -> None:
            seen.append("prefill")
            super().prefill(*step)

    monkeypatch.setattr("workers.engine.loading.TorchAttention", Seen)
    [shard] = _launched(folder)._launcher._shards
    assert seen == ["decode", "prefill"] * SHAPE.layers
    assert not any(pages.numbers[:, :-1].any() for pages in shard._pages.layers)


def test_the_seconds_of_a_step_are_what_its_slowest_stage_computes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling is the last stage's; what a stage waits for is nobody's."""
    now = 0.0

    def takes(seconds: float, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*given: Any) -> Any:
            nonlocal now
            now += seconds
            return call(*given)

        return called

    model = bloom(folder, kv_layout="paged", lookahead=1, devices=["cpu", "cpu"])
    monkeypatch.setattr("workers.engine.gpu.lane.time", SimpleNamespace(perf_counter=lambda: now))
    for shard, seconds in zip(model._launcher._shards, (3.0, 2.0), strict=True):
        monkeypatch.setattr(shard, "run", takes(seconds, shard.run))
        monkeypatch.setattr(shard.lane, "follow", takes(100.0, shard.lane.follow))
    monkeypatch.setattr("workers.engine.gpu.runner.begin", takes(5.0, runner.begin))
    engine = Engine(model, prefill_budget=24)
    drive(engine, [Add("a", [20, 30], SamplingParams(max_tokens=6, ignore_eos=True))])
    assert engine.stats.computing_s == 7.0 * sum(engine.stats.step_seconds) == 42.0


def test_a_step_without_memory_takes_those_ahead_of_it_along(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was launched on tokens that never came is dropped, all is computed anew, and every token is right."""
    model = _launched(folder)
    shard = model._launcher._shards[0]
    run, calls = shard.run, []

    def scarce(layout: Layout) -> torch.Tensor:
        calls.append(len(layout.ids))
        if len(calls) in (4, 9):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return run(layout)

    monkeypatch.setattr(shard, "run", scarce)
    engine = Engine(model, prefill_budget=64)
    prompts = _prompts(5, seed=2)
    said = drive(
        engine, [Add(str(i), p, SamplingParams(max_tokens=12, ignore_eos=True)) for i, p in enumerate(prompts)]
    )
    assert engine.stats.out_of_memory == 2
    for i, prompt in enumerate(prompts):
        reference.assert_same(folder, prompt, reference.generate(folder, prompt, 12), said[str(i)].ids)


def test_an_error_of_the_device_ends_the_engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised by the step that it hit: the process ends, and the worker starts another one."""
    model = _launched(folder)

    def broken(_: Layout) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    engine = Engine(model, prefill_budget=64)
    engine.add(Add("a", [20, 30], SamplingParams(max_tokens=9)))
    gather(engine.step())
    monkeypatch.setattr(model._launcher._shards[0], "run", broken)
    engine.step()  # takes in what was launched before
    with pytest.raises(RuntimeError, match="illegal memory access"):
        engine.step()


def test_a_device_that_makes_no_graph_is_served_without(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs that fail at load cost speed and nothing else."""
    model = _launched(folder)
    shard = model._launcher._shards[0]
    tried = []

    def fails(*args: object) -> None:
        tried.append(args)
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    with monkeypatch.context() as patch:
        patch.setattr("workers.engine.gpu.shard.capture", fails)
        patch.setattr(torch.cuda, "synchronize", lambda _: None)
        patch.setattr(shard, "device", torch.device("cuda"))
        patch.setattr(shard._attention, "is_static", True)
        shard.warm_up()
    assert len(tried) == 1
    said = drive(Engine(model, prefill_budget=64), [Add("a", [20, 30], SamplingParams(max_tokens=9, ignore_eos=True))])
    reference.assert_same(folder, [20, 30], reference.generate(folder, [20, 30], 9), said["a"].ids)


def test_lookahead_needs_pages(folder: Path) -> None:
    """Asked for over contiguous blocks it is refused, with what to set."""
    with pytest.raises(ModelRefused, match="FARM_ENGINE__KV_LAYOUT=paged"):
        bloom(folder, lookahead=1)
