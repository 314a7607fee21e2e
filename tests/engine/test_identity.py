"""The engine's greedy tokens are those of transformers' generate, run one by one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.byte_bpe import FIRST_BYTE
from benchmarks.workload import save_bloom, save_config
from tests.engine import reference
from tests.engine.driving import Said, bloom, drive
from workers.engine import batch
from workers.engine.checkpoint import BloomConfig
from workers.engine.engine import Engine
from workers.engine.protocol import Add, SamplingParams

SHAPES = {
    "3 heads": BloomConfig(vocab=300, hidden=48, layers=2, heads=3),
    "5 heads": BloomConfig(vocab=421, hidden=80, layers=3, heads=5),
    "6 heads": BloomConfig(vocab=512, hidden=96, layers=2, heads=6),
    "12 heads": BloomConfig(vocab=600, hidden=96, layers=2, heads=12),
    "8 heads, post-norm residual": BloomConfig(vocab=400, hidden=64, layers=3, heads=8, residual_post_norm=True),
    "1 head, explicit head": BloomConfig(vocab=350, hidden=32, layers=2, heads=1, tied=False),
}


def _prompts(vocab: int, count: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(FIRST_BYTE, vocab) for _ in range(rng.choice([1, 2, 7, 20, 45, 90]))] for _ in range(count)]


def _adds(prompts: list[list[int]], rng: random.Random) -> list[Add]:
    return [
        Add(str(i), prompt, SamplingParams(max_tokens=rng.randint(3, 40), ignore_eos=True))
        for i, prompt in enumerate(prompts)
    ]


def _check(folder: Path, adds: list[Add], said: dict[str, Said]) -> None:
    for add in adds:
        assert isinstance(add.prompt, list)
        assert said[add.id].reason == "length"
        expected = reference.generate(folder, add.prompt, add.params.max_tokens)
        reference.assert_same(folder, add.prompt, expected, said[add.id].ids)


@pytest.mark.parametrize("native", ["auto", "off"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_tokens_equal_generate_whatever_the_shape_and_the_order_of_arrival(
    shape: BloomConfig, native: str, tmp_path: Path
) -> None:
    """Requests that arrive at random, share steps and chunk their prompts get the tokens they would get alone."""
    folder = save_bloom(tmp_path / "bloom", shape, seed=3, scale=6.0)
    rng = random.Random(shape.heads)
    adds = _adds(_prompts(shape.vocab, 10, seed=shape.heads), rng)
    model = bloom(folder, max_slots=4, prefill_budget=24, native=native)
    said = drive(Engine(model, prefill_budget=24), adds, arrive=[rng.randint(0, 60) for _ in adds])
    _check(folder, adds, said)
    generated = [token for one in said.values() for token in one.ids]
    assert len(set(generated)) > len(generated) / 12, "the texts only repeat themselves: the comparison proves nothing"


def test_tokens_equal_generate_where_rows_are_attended_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a build of torch without the operators that attend them at once."""
    monkeypatch.setattr(batch, "decodes_at_once", lambda: False)
    shape = SHAPES["3 heads"]
    folder = save_bloom(tmp_path / "bloom", shape, seed=3, scale=6.0)
    adds = _adds(_prompts(shape.vocab, 8, seed=5), random.Random(5))
    _check(folder, adds, drive(Engine(bloom(folder, native="off"), prefill_budget=24), adds))


LAYOUTS: dict[str, dict[str, object]] = {
    "contiguous": {},
    "contiguous, torch": {"native": "off"},
    "paged": {"kv_layout": "paged"},
    "two stages": {"devices": ["cpu", "cpu"]},
    "two stages, torch": {"devices": ["cpu", "cpu"], "native": "off"},
    "more stages than layers": {"devices": ["cpu"] * 6},
    "three stages, paged": {"devices": ["cpu", "cpu", "cpu"], "kv_layout": "paged"},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_tokens_equal_generate_in_every_layout_when_memory_runs_short(
    layout: dict[str, object], tmp_path: Path
) -> None:
    """Whatever the cache's layout and the number of stages, sequences that were preempted, moved and computed again
    get the tokens that they would get alone."""
    shape = SHAPES["5 heads"]
    folder = save_bloom(tmp_path / "bloom", shape, seed=3, scale=6.0)
    rng = random.Random(9)
    adds = [
        Add(str(i), prompt, SamplingParams(max_tokens=rng.randint(20, 70), ignore_eos=True))
        for i, prompt in enumerate(_prompts(shape.vocab, 10, seed=9))
    ]
    token_bytes = 2 * shape.layers * shape.hidden * 4
    model = bloom(folder, max_slots=8, kv_bytes=256 * token_bytes, **layout)
    assert model.ready.kv_tokens == 256
    engine = Engine(model, prefill_budget=24)
    _check(folder, adds, drive(engine, adds, arrive=[rng.randint(0, 30) for _ in adds]))
    assert engine.stats.preemptions > 0, "memory never ran short: nothing was shown"
    assert engine.stats.kv_tokens == 0


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_tokens_equal_generate_when_beginnings_are_shared(layout: dict[str, object], tmp_path: Path) -> None:
    """Prompts that begin alike compute the beginning once, and get the tokens that they would get alone."""
    shape = SHAPES["5 heads"]
    folder = save_bloom(tmp_path / "bloom", shape, scale=6.0)
    rng = random.Random(4)
    begin = [rng.randrange(FIRST_BYTE, shape.vocab) for _ in range(150)]
    prompts = [begin[: rng.choice([64, 100, 130, 150])] + prompt for prompt in _prompts(shape.vocab, 8, seed=4)]
    adds = [
        Add(str(i), prompt, SamplingParams(max_tokens=12, ignore_eos=True), scope="a" if i < 6 else "b")
        for i, prompt in enumerate(prompts)
    ]
    model = bloom(folder, max_slots=4, **layout)
    engine = Engine(model, prefill_budget=48)
    _check(folder, adds, drive(engine, adds, arrive=range(0, 8 * 20, 20)))
    block = 16 if "kv_layout" in layout else 64
    alike = [sum(map(int.__eq__, prompt[:150], begin)) // block * block for prompt in prompts]
    assert engine.stats.cached_prompt_tokens >= sum(alike[1:6]) // 2
    assert engine.stats.cached_prompt_tokens % block == 0


def test_the_end_of_text_token_stops_where_generate_stops(tmp_path: Path) -> None:
    """A request ends at any of the model's own end-of-text tokens, which is not among its tokens."""
    shape = SHAPES["5 heads"]
    folder = save_bloom(tmp_path / "bloom", shape, scale=6.0)
    ends = [2, *range(10, 20)]
    save_config(folder, shape, eos_token_id=ends)
    prompts = _prompts(shape.vocab, 12, seed=1)
    adds = [Add(str(i), prompt, SamplingParams(max_tokens=60)) for i, prompt in enumerate(prompts)]
    said = drive(Engine(bloom(folder, max_slots=16), prefill_budget=64), adds)
    for add, prompt in zip(adds, prompts, strict=True):
        expected = reference.generate(folder, prompt, 60, ignore_eos=False)
        ended = expected[-1] in ends
        assert said[add.id].reason == ("stop" if ended else "length")
        reference.assert_same(folder, prompt, expected[:-1] if ended else expected, said[add.id].ids)
    assert {one.reason for one in said.values()} == {"stop", "length"}, "the seed must give both endings"


def test_tiny_bloom_continues_text_as_generate_does() -> None:
    """The default model's tokens are those of transformers."""
    folder = Path(__file__).parents[2] / "workers/tiny_bloom"
    model = bloom("tiny-bloom", max_slots=4, prefill_budget=16)
    prompts = [
        model.encode(text) for text in ("Once upon a time", "The little farm", "She opened the door and", "One day")
    ]
    adds = [Add(str(i), prompt, SamplingParams(max_tokens=48, ignore_eos=True)) for i, prompt in enumerate(prompts)]
    _check(folder, adds, drive(Engine(model, prefill_budget=16), adds, arrive=[0, 3, 5, 20]))
