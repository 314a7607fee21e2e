"""What of a Bloom each rank holds and reads, and what the ranks tell each other."""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest
import torch

from benchmarks.workload import save_bloom
from workers.engine.checkpoint import BloomConfig, find_checkpoint
from workers.engine.kv.arena import Block
from workers.engine.kv.manager import Clear, Copy
from workers.engine.layout import Layout, Span
from workers.engine.planner import plan_shards
from workers.engine.presets import PRESETS
from workers.engine.sequence import Pages
from workers.engine.shard_plan import Device, ModelTooLarge
from workers.engine.tensor_parallel.cut import Rank
from workers.engine.tensor_parallel.group import backend_of
from workers.engine.tensor_parallel.plan import plan_ranks
from workers.engine.tensor_parallel.wire import decode_layout, encode_layout
from workers.engine.weights import EMBEDDING, Weights, expected_shapes


@pytest.mark.parametrize("count", [2, 3, 6])
def test_every_number_of_a_cut_tensor_is_held_once(count: int, tmp_path: Path) -> None:
    """Ranks hold each number of a cut tensor once and of every other tensor a copy, and read no more of the file."""
    shape = BloomConfig(vocab=301, hidden=96, layers=1, heads=6, tied=False)
    checkpoint = find_checkpoint(str(save_bloom(tmp_path / "bloom", shape)))
    ranks = [Rank(number, count) for number in range(count)]
    held = [0] * count
    with Weights(checkpoint, torch.float32) as weights:
        for name in [*expected_shapes(shape), "lm_head.weight"]:
            whole = weights.take(name)
            seen = torch.zeros_like(whole)
            for rank in ranks:
                part = rank.part(name, weights.shape(name))
                taken = weights.take(name, part)
                assert torch.equal(taken, whole[part])
                seen[part] += 1
                held[rank.number] += taken.nbytes
            is_copied = "norm" in name or "ln_f" in name or name.endswith(("dense.bias", "dense_4h_to_h.bias"))
            assert (seen == (count if is_copied else 1)).all()
    assert held == [rank.held_bytes(shape, "float32") for rank in ranks]


def test_ranks_of_bloom_7b1_hold_and_read_equal_parts() -> None:
    """Each of four holds a quarter and the norms, so its step reads a quarter; together they hold one model, not a
    second head, and room for as many tokens as what is left."""
    config, gib = PRESETS["bigscience/bloom-7b1"], 1 << 30
    whole = plan_shards(config, "bfloat16", [Device("cuda:0", 80 * gib)])
    plan = plan_ranks(config, "bfloat16", [Device(f"cuda:{number}", 6 * gib) for number in range(4)])
    copied = plan.weight_bytes - whole.weight_bytes
    assert 0 < copied < 6_000_000
    assert copied % 3 == 0
    assert plan.largest_step_bytes == plan.step_bytes // 4 == plan.weight_bytes // 4
    assert plan.kv_token_bytes == whole.kv_token_bytes
    room = plan.stages[0].kv_bytes
    assert plan.kv_tokens == room // (plan.kv_token_bytes // 4) // 16 * 16
    with pytest.raises(ModelTooLarge, match=r"does not fit 2 ranks .* bytes are missing on each") as refused:
        plan_ranks(config, "bfloat16", [Device(f"cuda:{number}", 6 * gib) for number in range(2)])
    larger = [Device(f"cuda:{number}", 6 * gib + missing) for number, missing in enumerate(refused.value.missing)]
    assert plan_ranks(config, "bfloat16", larger).kv_tokens == 2048


def test_an_embedding_that_is_not_the_head_is_held_and_not_read() -> None:
    """A step reads only its tokens' rows of it."""
    shape = BloomConfig(vocab=300, hidden=64, layers=2, heads=4, tied=False)
    rank = Rank(1, 2)
    embedding = prod(expected_shapes(shape)[EMBEDDING]) * 4 // 2
    assert rank.held_bytes(shape, "float32") - rank.read_bytes(shape, "float32") == embedding


def test_gpus_speak_nccl_and_everything_else_gloo() -> None:
    """NCCL takes no GPU twice and knows no CPU."""
    cpu, first, second = Device("cpu", 0), Device("cuda:0", 0), Device("cuda:1", 0)
    assert backend_of([first, second]) == "nccl"
    assert [backend_of(pair) for pair in ([cpu, cpu], [first, first], [cpu, first])] == ["gloo"] * 3


@pytest.mark.parametrize("places", [[Block(64, 128), Block(0, 64)], [Pages([3, 1, 70_000]), Pages([])]])
def test_a_layout_reaches_the_other_ranks_unchanged(places: list[Block | Pages]) -> None:
    """Blocks or pages, with memory to copy and to clear and rows that give tokens."""
    spans = [Span(places[0], 40), Span(places[1], 3, 2)]
    copies = [Copy(Block(0, 64), 1, Block(128, 128), 2, 3)] if isinstance(places[0], Block) else []
    changes = [Clear(places[0], 3, 7), *copies, Clear(places[1], 0, 1)]
    for layout in (Layout([9, 250_879, 5], spans, 1, [0, 2], changes), Layout([1], spans[:1], 1, [], [])):
        assert decode_layout(encode_layout(layout)) == layout
