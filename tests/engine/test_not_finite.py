"""A job whose numbers are no numbers spoils nobody else's: not beside it, and not in the memory that it leaves."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.byte_bpe import FIRST_BYTE
from benchmarks.workload import save_bloom
from tests.engine import reference
from tests.engine.driving import Said, bloom, drive, gather
from tests.engine.test_tensor_parallel import ranked
from workers.engine.bloom import Bloom
from workers.engine.checkpoint import BloomConfig
from workers.engine.engine import Engine
from workers.engine.kv.pages import PageBuffers
from workers.engine.layout import Layout, Span
from workers.engine.model import OutOfMemory
from workers.engine.protocol import Add, SamplingParams
from workers.engine.sequence import Pages
from workers.engine.weights import EMBEDDING, Weights

SHAPE = BloomConfig(vocab=300, hidden=64, layers=3, heads=4, tied=False)
TOKENS = 256
MEMORY = {"kv_bytes": TOKENS * 2 * SHAPE.layers * SHAPE.hidden * 4, "max_slots": 3}
"""Memory for so many tokens, which everything below goes through more than once."""
RNG = random.Random(8)


def _some(count: int) -> list[int]:
    return [RNG.randrange(FIRST_BYTE, SHAPE.vocab) for _ in range(count)]


ENDS = _some(2)
"""A prompt whose text comes to the token that is no number."""
BEGIN = _some(40)
GOOD = [_some(5), BEGIN + _some(20), _some(33), _some(17)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bloom(tmp_path_factory.mktemp("bloom") / "bloom", SHAPE, seed=3, scale=6.0)


@pytest.fixture
def bad(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """A token whose embedding is NaN from here on: what follows it in a text is not finite. Good prompts lack it."""
    prompts = {token for prompt in (BEGIN, ENDS, *GOOD) for token in prompt}
    text = reference.generate(folder, ENDS, 20)
    bad = next(token for token in text[1:] if token not in prompts and token < SHAPE.vocab // 2)
    take: Callable[..., Tensor] = Weights.take

    def poisoned(weights: Weights, name: str, *part: Any) -> Tensor:
        tensor = take(weights, name, *part)
        if name == EMBEDDING:
            tensor = tensor.clone()
            tensor[bad] = torch.nan
        return tensor

    monkeypatch.setattr(Weights, "take", poisoned)
    return bad


def _good(bad: int, engine: Engine, *others: Add) -> dict[str, list[int]]:
    """What the good texts say, computed with others at once. The bad token is ruled out: it would come too early."""
    params = SamplingParams(max_tokens=30, min_tokens=30, ignore_eos=True, stop_token_ids=(bad,))
    adds = [Add(str(i), prompt, params) for i, prompt in enumerate(GOOD)]
    said = drive(engine, [*others, *adds])
    assert all(said[other.id].failed for other in others)
    for add in adds:
        assert said[add.id].failed is None, "a good text was spoilt"
    return {add.id: said[add.id].ids for add in adds}


def _fails(bad: int, engine: Engine, wanted: dict[str, list[int]]) -> None:
    """It comes alone, with a beginning that another text shares, and again beside the others."""
    broken = Add("bad", [*BEGIN, bad, *GOOD[0]], SamplingParams(max_tokens=9))
    failed = drive(engine, [broken])["bad"].failed
    assert failed is not None
    assert failed.code == "not_finite"
    assert _good(bad, engine, broken) == _good(bad, engine) == _good(bad, engine) == wanted


def _goes(bad: int, engine: Engine, wanted: dict[str, list[int]]) -> None:
    """It is cancelled between two chunks of its prompt, before anyone knows."""
    engine.add(Add("bad", [*BEGIN[:20], bad, *GOOD[1], *GOOD[1]], SamplingParams(max_tokens=9)))
    engine.step()
    assert engine.running == 1
    engine.cancel("bad")
    assert _good(bad, engine) == _good(bad, engine) == wanted


LAYOUTS: dict[str, dict[str, Any]] = {
    "native": {},
    "torch": {"native": "off"},
    "torch, two stages": {"native": "off", "devices": ["cpu", "cpu"]},
    "pages": {"kv_layout": "paged"},
    "int8 pages": {"kv_dtype": "int8"},
    "fp8 pages": {"kv_dtype": "fp8"},
    "int8 ahead": {"kv_dtype": "int8", "lookahead": 1},
    "ahead": {"kv_layout": "paged", "lookahead": 1},
    "ahead, two stages": {"kv_layout": "paged", "lookahead": 1, "devices": ["cpu", "cpu"]},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("happens", [_fails, _goes])
def test_the_next_jobs_on_its_memory_say_what_they_say_on_a_fresh_engine(
    happens: Callable[[int, Engine, dict[str, list[int]]], None], layout: dict[str, Any], folder: Path, bad: int
) -> None:
    """However it ends, and whichever way the model is computed."""
    model = bloom(folder, **MEMORY, **layout)
    wanted = _good(bad, Engine(model, 48))
    happens(bad, Engine(model, 48), wanted)


@pytest.mark.parametrize("kept", [None, torch.int8, torch.float8_e4m3fn])
def test_a_short_row_reads_no_page_of_a_neighbour(kept: torch.dtype | None) -> None:
    """Beside a longer one its table is filled up with a page of its own, so it stays finite if any other is not."""
    pages = PageBuffers(1, 2, 8, 128, torch.float32, torch.device("cpu"), kept=kept)
    short, long = Span(Pages([3]), 4), Span(Pages([1, 2]), 20)
    qkv, alone, both = torch.randn(2, 2, 3, 8), torch.empty(1, 2, 8), torch.empty(2, 2, 8)
    pages.batch(Layout([5], [short], 1, [0], [])).attend(0, qkv[:1], alone)
    [layer] = pages.layers
    layer.tensors()[-1][:, [0, *range(4, 8)]] = torch.nan  # the scales, where there are some
    pages.batch(Layout([5, 5], [short, long], 2, [0, 1], [])).attend(0, qkv, both)
    torch.testing.assert_close(both[:1], alone)
    assert both.isfinite().all()


@pytest.mark.parametrize("devices", [["cpu"], ["cpu", "cpu"]], ids=["one stage", "two stages"])
def test_a_step_ahead_of_a_good_end_leaves_nothing(devices: list[str], folder: Path, bad: int) -> None:
    """A text ends by the token that is no number, and a step has gone on from it before anyone knew."""
    model = bloom(folder, kv_layout="paged", lookahead=1, devices=devices, **MEMORY)
    wanted = _good(bad, Engine(model, 48))
    engine = Engine(model, 48)
    params = SamplingParams(max_tokens=25, ignore_eos=True, stop_token_ids=(bad,))
    said = drive(engine, [Add(f"ends {number}", ENDS, params) for number in range(3)])
    assert {one.reason for one in said.values()} == {"stop"}
    assert _good(bad, engine) == _good(bad, engine) == wanted


@pytest.mark.parametrize("layout", ["contiguous", "paged"])
def test_ranks_clear_their_parts_of_it(layout: str, folder: Path, bad: int) -> None:
    """Every rank's, those of other processes too."""
    with ranked(folder, kv_layout=layout, **MEMORY) as model:
        wanted = _good(bad, Engine(model, 48))
        engine = Engine(model, 48)
        _fails(bad, engine, wanted)
        _goes(bad, engine, wanted)


@pytest.mark.parametrize("layout", ["contiguous", "paged"])
def test_a_shortage_of_memory_loses_no_clearing(
    layout: str, folder: Path, bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step that was to clear what a job left finds no memory and is given up: the next one clears it."""
    model = bloom(folder, kv_layout=layout, native="off", **MEMORY)
    wanted = _good(bad, Engine(model, 48))
    engine = Engine(model, 48)
    assert drive(engine, [Add("bad", [*BEGIN, bad], SamplingParams(max_tokens=9))])["bad"].failed
    said: dict[str, Said] = {}
    with monkeypatch.context() as patch:
        patch.setattr(Bloom, "collect", _full)
        params = SamplingParams(max_tokens=30, min_tokens=30, ignore_eos=True, stop_token_ids=(bad,))
        engine.add(Add("0", GOOD[0], params))
        gather(engine.step(), said)
    while engine.has_work:
        gather(engine.step(), said)
    assert said["0"].ids == wanted["0"]
    assert engine.stats.out_of_memory == 1
    assert _good(bad, engine) == _good(bad, engine) == wanted


def _full(_: Bloom) -> None:
    raise OutOfMemory("a step found no memory to compute in")
