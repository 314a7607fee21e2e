"""How far bfloat16 strays from float32 as the context grows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BloomForCausalLM

from benchmarks.workload import save_bloom
from farm.settings import EngineSettings, ModelSettings
from tests.engine import reference
from workers.engine.bloom import Bloom
from workers.engine.checkpoint import BloomConfig
from workers.engine.kv.arena import Block
from workers.engine.layout import Layout, Span
from workers.engine.sequence import Pages

SHAPE = BloomConfig(vocab=512, hidden=128, layers=4, heads=8)
TOKENS = 2000
CHUNK = 250


def _logits(folder: Path, layout: str, dtype: str, ids: list[int], device: str = "cpu") -> Tensor:
    """The engine's logits after every token of one text, computed in chunks. [TOKENS, vocab]."""
    model = Bloom(
        ModelSettings(id=str(folder), dtype=dtype),  # type: ignore[arg-type]
        EngineSettings(devices=[device], threads=1, max_slots=1, max_context=2048, kv_layout=layout),  # type: ignore[arg-type]
    )
    place = Pages(list(range(128))) if layout == "paged" else Block(0, 2048)
    rows = []
    for start in range(0, TOKENS, CHUNK):
        span = Span(place, start, CHUNK)
        model._launcher._pipeline.submit(Layout(ids[start : start + CHUNK], [span], 0, list(range(CHUNK)), []))
        rows.append(model._launcher._pipeline.collect()[0].cpu())
    return torch.cat(rows)


def _rms(error: Tensor) -> tuple[float, float]:
    """The error early and late in the context: tokens 64 to 192, and the last 128."""
    return error[64:192].square().mean().sqrt().item(), error[-128:].square().mean().sqrt().item()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Bloom whose weights are the same in bfloat16 and float32, so that only the computation differs."""
    return save_bloom(tmp_path_factory.mktemp("numerics") / "bloom", SHAPE, scale=2.0, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return torch.randint(4, SHAPE.vocab, (TOKENS,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.mark.parametrize(
    ("layout", "device"),
    [("contiguous", "cpu"), ("paged", "cpu"), pytest.param("paged", "cuda:0", marks=pytest.mark.gpu)],
)
def test_bfloat16_errs_no_more_late_in_a_long_context_than_early(
    folder: Path, ids: list[int], layout: str, device: str
) -> None:
    """ALiBi's bias is made of distances in float32, so it does not lose digits as positions grow."""
    exact = _logits(folder, layout, "float32", ids, device)
    early, late = _rms(_logits(folder, layout, "bfloat16", ids, device) - exact)
    assert 0 < late < 1.5 * early


@torch.inference_mode()
def test_the_comparison_sees_an_error_that_grows(folder: Path, ids: list[int]) -> None:
    """transformers casts slope * position to bfloat16, and its error grows with the context."""
    exact = reference.load(folder)(torch.tensor([ids])).logits[0]
    rounded = BloomForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()(torch.tensor([ids])).logits[0]
    early, late = _rms(rounded.float() - exact)
    assert late > 2 * early
