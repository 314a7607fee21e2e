"""Plans of Bloom-7B1 for cards that it hardly fits, worked out by hand."""

from __future__ import annotations

import pytest

from tests.engine.test_shard_plan import BLOOM_7B1, GIB, gpus
from workers.engine.kv.paged import PAGE
from workers.engine.planner import plan_shards

H, LAYERS, VOCAB = 4096, 30, 250_880
BLOCK_BF16 = 2 * (12 * H * H + 13 * H)
"""A block by hand: 12 h^2 weights, 13 h of biases and norms."""
BLOCK_INT8 = 12 * H * H + 4 * (3 * H + H + 4 * H + H) + 2 * 13 * H
"""A block by hand: 12 h^2 bytes, an fp32 scale for each of 9 h rows, 13 h of biases and norms in bfloat16."""
HEAD_INT8 = VOCAB * H + 4 * VOCAB
KV_INT8 = LAYERS * 2 * (H + 4 * 32)
"""A token by hand: a byte for each number, and an fp32 scale for each of 32 heads, of keys and of values."""


def test_a_step_a_hundredth_longer_is_taken_for_twice_the_room() -> None:
    """On two of 10 GiB with 8-bit keys and values 17 layers and the head read 0.6% more than 18 layers do, and leave
    room for twice the tokens; with room for all that slots can use, the quicker cut is taken."""
    tight = plan_shards(BLOOM_7B1, "bfloat16", gpus(10 * GIB, 10 * GIB), kv_dtype="int8")
    assert [len(stage.layers) for stage in tight.stages] == [17, 13]
    assert tight.largest_step_bytes < 1.01 * 18 * BLOCK_BF16
    first = 10 * GIB - GIB - 2 * VOCAB * H - 2 * 2 * H
    assert tight.kv_tokens == (first - 17 * BLOCK_BF16) // (17 * KV_INT8 // LAYERS) // PAGE * PAGE
    assert tight.kv_tokens > 2 * ((first - 18 * BLOCK_BF16) // (18 * KV_INT8 // LAYERS))
    roomy = plan_shards(BLOOM_7B1, "bfloat16", gpus(80 * GIB, 80 * GIB), kv_dtype="int8")
    assert [len(stage.layers) for stage in roomy.stages] == [18, 12]


def test_eight_bits_are_counted() -> None:
    """Weights, their scales, the head beside the embedding, and keys and values; biases and norms stay as they were."""
    plan = plan_shards(BLOOM_7B1, "bfloat16", gpus(24 * GIB), quantization="int8", kv_dtype="int8")
    assert plan.step_bytes == LAYERS * BLOCK_INT8 + HEAD_INT8 + 2 * 4 * H
    assert plan.weight_bytes == plan.step_bytes + 2 * VOCAB * H
    assert plan.kv_token_bytes == KV_INT8 == 253_440
    logits = 64 * VOCAB * 48  # see test_reserve
    assert plan.kv_tokens == (23 * GIB - plan.weight_bytes - logits) // KV_INT8 // PAGE * PAGE
    fp8 = plan_shards(BLOOM_7B1, "bfloat16", gpus(24 * GIB), quantization="int8", kv_dtype="fp8")
    assert fp8.kv_tokens == plan.kv_tokens


@pytest.mark.parametrize(
    ("count", "gib", "eight", "layers", "kv_tokens"),
    [
        (2, 10, False, [17, 13], 2_720),
        (2, 10, True, [17, 13], 29_104),
        (4, 6, False, [8, 9, 9, 4], 2_736),
        (4, 6, True, [8, 9, 9, 4], 29_136),
    ],
)
def test_bloom_7b1_fits_small_cards(count: int, gib: int, eight: bool, layers: list[int], kv_tokens: int) -> None:
    """Two of 10 GiB or four of 6 GiB hold it, in bfloat16 with one long sequence, in 8 bits with many."""
    chosen = {"quantization": "int8", "kv_dtype": "int8"} if eight else {}
    plan = plan_shards(BLOOM_7B1, "bfloat16", gpus(*[gib * GIB] * count), **chosen)
    assert [len(stage.layers) for stage in plan.stages] == layers
    assert plan.kv_tokens == kv_tokens
    # By hand: the first device has the embedding with its norm beside its layers, and decides here.
    block = BLOCK_INT8 if eight else BLOCK_BF16
    token = (KV_INT8 if eight else 491_520) // LAYERS * layers[0]
    kept = min(GIB, gib * GIB // 8)
    room = gib * GIB - kept - layers[0] * block - 2 * VOCAB * H - 2 * 2 * H
    assert kv_tokens == room // token // PAGE * PAGE
