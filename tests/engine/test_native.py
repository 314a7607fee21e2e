"""The native stage computes what transformers computes, whatever shares the step, and is never required."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from transformers import BloomForCausalLM

from benchmarks.workload import save_bloom
from tests.engine import reference
from tests.engine.native import BLOCK, SHAPES, Made, Memory, spans, stage, tokens
from workers.engine.checkpoint import BloomConfig, find_checkpoint
from workers.engine.native.stage import NativeStage
from workers.engine.weights import Weights
from workers.tiny_bloom import FOLDER
from workers.tiny_bloom.train import encode, held_out_stories

PERPLEXITY_LOSS = 0.01

needs_library = pytest.mark.usefixtures("compiler")


def transformer(weights: Made, folder: Path) -> BloomForCausalLM:
    return reference.load(save_bloom(folder / "bloom", weights.config, weights.seed))


def assert_near(got: Tensor, wanted: Tensor, limit: float = 1e-4) -> None:
    assert (got - wanted).abs().max() <= limit * wanted.abs().max()


@needs_library
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_logits_are_those_of_transformers(shape: BloomConfig, tmp_path: Path) -> None:
    """Prompts whole, in chunks, and tokens one by one beside them, for heads and widths that fill no vector."""
    weights = Made(shape)
    theirs = transformer(weights, tmp_path)
    ids = [tokens(shape, 150, seed) for seed in range(3)]
    with torch.inference_mode():
        wanted = [theirs(one[None]).logits[0] for one in ids]
    ours, cache = stage(weights), Memory(shape)
    assert_near(ours.forward(ids[0][:130], spans((2, 0, 130)), torch.arange(130), cache), wanted[0][:130])
    assert_near(ours.forward(ids[1][:37], spans((5, 0, 37)), torch.tensor([36]), cache), wanted[1][36:37])
    for i in range(5):
        rows = torch.cat([ids[0][130 + i : 131 + i], ids[1][37 + i : 38 + i], ids[2][9 * i : 9 * i + 9]])
        got = ours.forward(rows, spans((2, 130 + i, 1), (5, 37 + i, 1), (0, 9 * i, 9)), torch.tensor([0, 1, 10]), cache)
        assert_near(got, torch.stack([wanted[0][130 + i], wanted[1][37 + i], wanted[2][9 * i + 8]]))


@needs_library
@pytest.mark.parametrize("quantization", [None, "int8"])
@settings(max_examples=25)
@given(data=st.data())
def test_neighbours_change_no_bit_of_a_row(quantization: str | None, data: st.DataObject) -> None:
    """Sequences in one step, however cut into chunks, get bit by bit what each gets alone and whole."""
    ours = _shared(quantization)
    lengths = data.draw(st.lists(st.integers(1, 70), min_size=1, max_size=6))
    ids = [tokens(SHAPES["3 heads of 24"], length, seed) for seed, length in enumerate(lengths)]
    alone = [
        ours.forward(one, spans((0, 0, len(one))), torch.arange(len(one)), Memory(SHAPES["3 heads of 24"], 1))
        for one in ids
    ]
    cache = Memory(SHAPES["3 heads of 24"])
    done = [0] * len(ids)
    while any(at < len(one) for at, one in zip(done, ids, strict=True)):
        live = [i for i in range(len(ids)) if done[i] < len(ids[i])]
        step = [(i, data.draw(st.integers(1, min(50, len(ids[i]) - done[i])))) for i in live]
        rows = torch.cat([ids[i][done[i] : done[i] + count] for i, count in step])
        got = ours.forward(rows, spans(*((i, done[i], count) for i, count in step)), torch.arange(len(rows)), cache)
        for (i, count), part in zip(step, got.split([count for _, count in step]), strict=True):
            assert torch.equal(part, alone[i][done[i] : done[i] + count])
            done[i] += count


_STAGES: dict[str | None, NativeStage] = {}


def _shared(quantization: str | None) -> NativeStage:
    if quantization not in _STAGES:
        _STAGES[quantization] = stage(Made(SHAPES["3 heads of 24"]), quantization=quantization)
    return _STAGES[quantization]


@needs_library
def test_blocks_may_have_any_size_and_place() -> None:
    """Down to the last token of the cache, which nothing may be read beyond."""
    for name in ("3 heads of 24", "2 heads of 64"):
        weights = Made(SHAPES[name])
        ours, ids = stage(weights), tokens(weights.config, 37)
        wanted = ours.forward(ids, spans((0, 0, 37)), torch.arange(37), Memory(weights.config))
        odd = Memory(weights.config)
        end = odd.blocks * BLOCK - 37
        rows = torch.cat([ids, ids])
        got = ours.forward(rows, torch.tensor([[end, 37, 0, 37], [3, 41, 0, 37]]), torch.arange(74), odd)
        assert torch.equal(got, torch.cat([wanted, wanted]))


@needs_library
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_threads_and_repeats_change_no_bit(quantization: str | None) -> None:
    """1, 2 and 3 threads, time and again."""
    weights = Made(SHAPES["2 heads of 64"])
    ids, where = tokens(weights.config, 200), spans((0, 0, 150), (1, 0, 49), (2, 0, 1))
    results = []
    for threads in (1, 2, 3):
        ours = stage(weights, threads=threads, quantization=quantization)
        results += [ours.forward(ids, where, torch.arange(200), Memory(weights.config)) for _ in range(10)]
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.fast
@needs_library
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_stages_in_a_row_equal_the_whole(quantization: str | None) -> None:
    """Hidden rows passed from stage to stage give the same logits, bit by bit."""
    weights = Made(SHAPES["8 heads of 8, post-norm residual"])
    ids, where, sampled = tokens(weights.config, 60), spans((0, 0, 59), (3, 0, 1)), torch.tensor([58, 59])
    wanted = stage(weights, quantization=quantization).forward(ids, where, sampled, Memory(weights.config))
    passed = ids
    for layers in (range(1), range(1, 2), range(2, 3)):
        part = stage(weights, layers, quantization=quantization)
        passed = part.forward(passed, where, sampled, Memory(weights.config, layers_=layers))
    assert torch.equal(passed, wanted)


@pytest.mark.fast
@needs_library
@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_row_that_is_not_finite_says_so_and_spoils_no_other(quantization: str | None, value: float) -> None:
    """The engine fails that sequence by its logits, and only that one."""
    weights = Made(SHAPES["2 heads of 64"])
    ours = stage(weights, range(1, 2), quantization=quantization)
    hidden = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    where, sampled = spans((0, 0, 1), (1, 0, 1), (2, 0, 1)), torch.arange(3)
    wanted = ours.forward(hidden, where, sampled, Memory(weights.config, layers_=range(1, 2)))
    hidden[1, 77] = value
    got = ours.forward(hidden, where, sampled, Memory(weights.config, layers_=range(1, 2)))
    assert not torch.isfinite(got[1]).any()
    assert torch.equal(got[[0, 2]], wanted[[0, 2]])


@pytest.mark.fast
@needs_library
def test_a_nan_weight_gives_nan_logits() -> None:
    """Whatever layer it is in."""
    for name in ("h.0.self_attention.query_key_value.weight", "h.1.mlp.dense_4h_to_h.weight", "ln_f.bias"):
        weights = Made(SHAPES["2 heads of 64"])
        weights.tensors[name].view(-1)[5] = math.nan
        got = stage(weights).forward(
            tokens(weights.config, 4), spans((0, 0, 4)), torch.arange(4), Memory(weights.config)
        )
        assert torch.isnan(got).any(-1).all(), name


@pytest.mark.fast
@needs_library
def test_what_lies_outside_is_refused() -> None:
    """A span over its block or the cache, an unknown id, an unknown row: an error, and nothing is written."""
    weights = Made(SHAPES["2 heads of 64"])
    ours, cache, ids = stage(weights), Memory(weights.config, 2), tokens(weights.config, 3)
    for rows, where, sampled in (
        (ids, spans((0, BLOCK - 2, 3)), [0]),
        (ids, spans((2, 0, 3)), [0]),
        (ids, spans((0, 0, 2)), [0]),
        (ids, spans((0, 0, 3)), [3]),
        (ids + weights.config.vocab, spans((0, 0, 3)), [0]),
    ):
        with pytest.raises(AssertionError, match="outside"):
            ours.forward(rows, where, torch.tensor(sampled), cache)
    assert all(torch.isnan(layer).all() for layer in cache.layers)


@needs_library
def test_int8_costs_tiny_bloom_less_than_a_hundredth_of_its_perplexity() -> None:
    """Head included."""
    from tokenizers import Tokenizer

    stories = encode(Tokenizer.from_file(str(FOLDER / "tokenizer.json")), held_out_stories([], 100))
    exact, rounded = (_nats(stories, quantization) for quantization in (None, "int8"))
    assert exact < 2.5, "the model has not learnt the text: the comparison proves nothing"
    assert rounded != exact
    assert math.exp(rounded - exact) < 1 + PERPLEXITY_LOSS


def _nats(stories: list[list[int]], quantization: str | None) -> float:
    """Mean loss per token of tiny-bloom on some texts."""
    with Weights(find_checkpoint("tiny-bloom"), torch.float32) as weights:
        config = weights.config
        ours = NativeStage(weights, range(config.layers), first=True, last=True, threads=2, quantization=quantization)
    losses = []
    for story in stories:
        ids = torch.tensor(story[:BLOCK])
        rows = len(ids) - 1
        logits = ours.forward(ids[:-1], spans((0, 0, rows)), torch.arange(rows), Memory(config, 1))
        losses.append(functional.cross_entropy(logits, ids[1:], reduction="none"))
    return torch.cat(losses).mean().item()


@pytest.mark.fast
@needs_library
def test_other_dtypes_are_left_to_torch() -> None:
    """Half precision and unknown quantizations are refused when the stage is made."""
    with pytest.raises(ValueError, match="bfloat16"):
        stage(Made(SHAPES["2 heads of 64"], dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="int3"):
        stage(Made(SHAPES["2 heads of 64"]), quantization="int3")


@needs_library
def test_many_steps_of_random_shapes_keep_the_pool_in_order() -> None:
    """Helpers that come late to a phase take nothing of the next one: results stay those of one thread."""
    weights = Made(SHAPES["3 heads of 24"])
    many, one = stage(weights, threads=4), stage(weights, threads=1)
    rng = random.Random(0)
    for _ in range(200):
        count = rng.choice([1, 2, 9, 33, 140])
        ids, where, sampled = tokens(weights.config, count, count), spans((0, 0, count)), torch.arange(count)
        got = many.forward(ids, where, sampled, Memory(weights.config, 1))
        assert torch.equal(got, one.forward(ids, where, sampled, Memory(weights.config, 1)))
