"""Keys and values in 8 bits: half the memory, a small and known error, and the same answer however it was computed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import kv_error
from benchmarks.byte_bpe import FIRST_BYTE
from benchmarks.workload import save_bloom
from farm.errors import ModelRefused
from tests.engine.driving import bloom, drive, one
from workers.engine.checkpoint import BloomConfig
from workers.engine.engine import Engine
from workers.engine.kv.eight_bits import KV_DTYPES, quantize
from workers.engine.kv.pages import PageLayer
from workers.engine.protocol import Add, SamplingParams

SHAPE = BloomConfig(vocab=500, hidden=80, layers=3, heads=5)
STEP = {"int8": 0.5 / 127, "fp8": 1 / 16}
"""The largest error of a rounding: half of a 127th of the largest number, and a sixteenth of the number itself."""

both = pytest.mark.parametrize("kv_dtype", ["int8", "fp8"])


@both
def test_a_number_comes_back_to_within_half_a_step(kv_dtype: str) -> None:
    """Whatever the size of the numbers; zeros stay zeros, and each vector is rounded by itself alone."""
    kept = KV_DTYPES[kv_dtype]
    rows = torch.randn(6, 4, 16, generator=torch.Generator().manual_seed(0))
    rows *= torch.tensor([1e-6, 1e-3, 1.0, 1e3, 1e6, 0.0])[:, None, None]
    small, scale = quantize(rows, kept)
    error = (small.float() * scale - rows).abs()
    if kv_dtype == "int8":
        assert (error <= 1.001 * STEP[kv_dtype] * rows.abs().amax(-1, keepdim=True)).all()
    else:
        # Numbers a 2^15th of the largest and below lie among fp8's few smallest.
        assert (error <= STEP[kv_dtype] * rows.abs() + 2e-5 * rows.abs().amax(-1, keepdim=True)).all()
    assert not small[5].float().any()
    alone, _ = quantize(rows[2:3, 1:2], kept)
    assert torch.equal(alone.float(), small[2:3, 1:2].float())


@both
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_noticed(kv_dtype: str, wrong: float) -> None:
    """A NaN or infinity that is stored comes back as NaN, so the engine fails the job that made it."""
    pages = PageLayer.of(2, 2, 8, torch.float32, torch.device("cpu"), KV_DTYPES[kv_dtype])
    kv = torch.ones(2, 2, 2, 8)  # [tokens, heads, 2, head_dim]
    kv[1, 0, 0, 3] = wrong
    pages.write(torch.tensor([0, 1]), torch.tensor([0, 5]), kv)
    found = pages.gather(torch.tensor([[0, 1]]), torch.float32)  # [2, spans, pages, heads, PAGE, head_dim]
    assert found[0, 0, 1, 0, 5].isnan().any()
    assert found[0, 0, 1, 1, 5].isfinite().all()
    assert torch.equal(found[1, 0, 0, :, 0], torch.ones(2, 8))


@pytest.mark.parametrize(("kv_dtype", "logits", "perplexity"), [("int8", 0.01, 0.002), ("fp8", 0.03, 0.005)])
def test_tiny_bloom_loses_little(kv_dtype: str, logits: float, perplexity: float) -> None:
    """The error of its logits, in parts of their spread, and its perplexity are bounded; docs/engine.md has figures."""
    cost = kv_error.compare(kv_error.held_out(40), kv_dtype)
    assert 0 < cost.logit_error < logits
    assert abs(cost.perplexity - 1) < perplexity
    assert cost.same_best > 0.99


LAYOUTS: dict[str, dict[str, Any]] = {
    "step by step": {},
    "launched ahead": {"lookahead": 1},
    "launched ahead, two stages": {"lookahead": 1, "devices": ["cpu", "cpu"]},
}


@both
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_tokens_are_the_same_when_memory_runs_short_and_when_beginnings_are_shared(
    layout: dict[str, Any], kv_dtype: str, tmp_path: Path
) -> None:
    """A sequence that was preempted and computed again, or found its beginning cached, says what it says alone.

    Also where steps are padded and launched before the tokens that they follow on are known.
    """
    folder = save_bloom(tmp_path / "bloom", SHAPE, seed=3, scale=6.0)
    rng = random.Random(5)
    begin = [rng.randrange(FIRST_BYTE, SHAPE.vocab) for _ in range(40)]
    adds = [
        Add(
            str(i),
            begin[: rng.choice([0, 32, 40])] + [rng.randrange(FIRST_BYTE, SHAPE.vocab) for _ in range(9)],
            SamplingParams(max_tokens=rng.randint(20, 60), ignore_eos=True),
        )
        for i in range(10)
    ]
    plenty = bloom(folder, kv_dtype=kv_dtype, max_slots=1)
    alone = {add.id: drive(Engine(plenty, 24), [add])[add.id].ids for add in adds}
    token_bytes = SHAPE.layers * 2 * (SHAPE.hidden + 4 * SHAPE.heads)
    scarce = bloom(folder, kv_dtype=kv_dtype, max_slots=8, kv_bytes=256 * token_bytes + 15 * token_bytes, **layout)
    assert scarce.ready.kv_tokens == 256
    assert scarce.lookahead == layout.get("lookahead", 0)
    engine = Engine(scarce, 24)
    said = drive(engine, adds, arrive=[3 * i for i in range(10)])
    assert {id: found.ids for id, found in said.items()} == alone
    assert engine.stats.preemptions > 0, "memory never ran short: nothing was shown"
    assert engine.stats.cached_prompt_tokens > 0, "nothing was shared: nothing was shown"
    cut = len(alone["0"]) // 2
    rest = one(Engine(scarce, 24), adds[0].prompt, resume=alone["0"][:cut], max_tokens=len(alone["0"]), ignore_eos=True)
    assert alone["0"][:cut] + rest.ids == alone["0"]


def test_it_is_another_model_in_pages(tmp_path: Path) -> None:
    """Its fingerprint is its own, so that no attempt goes on from the other's tokens; contiguous blocks are refused."""
    folder = save_bloom(tmp_path / "bloom", SHAPE)
    made: dict[str, Any] = {name: bloom(folder, kv_dtype=name).ready for name in ("auto", "int8", "fp8")}
    assert len({ready.fingerprint for ready in made.values()}) == 3
    with pytest.raises(ModelRefused, match="FARM_ENGINE__KV_DTYPE=fp8 lies in pages"):
        bloom(folder, kv_dtype="fp8", kv_layout="contiguous")
    with pytest.raises(ModelRefused, match="unset FARM_ENGINE__KV_DTYPE=int8 or FARM_ENGINE__TENSOR_PARALLEL=5"):
        bloom(folder, kv_dtype="int8", tensor_parallel=5)
