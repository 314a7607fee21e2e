"""A Bloom is planned over devices from its shape alone: it fits, nothing is lost, and the slowest stage is fastest."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations_with_replacement, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engine.checkpoint import BloomConfig
from workers.engine.kv.paged import PAGE
from workers.engine.module_bytes import ModuleBytes, bytes_of_shapes, layer_token_bytes
from workers.engine.planner import plan_shards, reserved, with_reserve
from workers.engine.presets import PRESETS, parameters
from workers.engine.shard_plan import Device, ModelTooLarge, ShardPlan
from workers.engine.weights import HEAD

GIB = 1 << 30
BLOOM_7B1 = PRESETS["bigscience/bloom-7b1"]
SMALL = BloomConfig(vocab=300, hidden=32, layers=5, heads=4)


def gpus(*sizes: int) -> list[Device]:
    return [Device(f"cuda:{index}", size) for index, size in enumerate(sizes)]


@st.composite
def shapes(draw: st.DrawFn) -> BloomConfig:
    """Heads from a fraction of a block to many blocks, tied or not."""
    hidden = draw(st.sampled_from([4, 8, 16]))
    vocab, layers = draw(st.integers(1, 3000)), draw(st.integers(1, 7))
    return BloomConfig(vocab=vocab, hidden=hidden, layers=layers, heads=2, tied=draw(st.booleans()))


sizes = st.lists(st.integers(0, 400_000), min_size=1, max_size=4)


def check(plan: ShardPlan, devices: list[Device], reserve: int | None = None) -> None:
    """What holds for every plan."""
    layers = [layer for stage in plan.stages for layer in stage.layers]
    assert layers == list(range(plan.config.layers))
    assert [stage.has_embedding for stage in plan.stages].index(True) == 0
    assert [stage.has_head for stage in plan.stages] == [False] * (len(plan.stages) - 1) + [True]
    assert sorted([*(stage.device.name for stage in plan.stages), *(idle.name for idle in plan.idle)]) == sorted(
        device.name for device in devices
    )
    for stage in plan.stages:
        kv_bytes = plan.kv_tokens * len(stage.layers) * layer_token_bytes(plan.config, plan.dtype)
        assert stage.weight_bytes + kv_bytes + reserved(stage.device.bytes, reserve) <= stage.device.bytes
        assert kv_bytes <= stage.kv_bytes
    assert plan.sequences(plan.context) >= 1


@settings(max_examples=150)
@given(config=shapes(), sizes=sizes, context=st.integers(1, 200), reserve=st.sampled_from([None, 0, 1000]))
def test_every_layer_is_somewhere_and_no_device_is_exceeded(
    config: BloomConfig, sizes: list[int], context: int, reserve: int | None
) -> None:
    """Whatever the shape and the devices: layers once and in order, weights and keys and values within each device.

    A model that does not fit is refused; given the bytes that the refusal names, it fits, and no even addition of less
    than the most of them would do.
    """

    def planned(extra: list[int]) -> ShardPlan:
        devices = gpus(*map(sum, zip(sizes, extra, strict=True)))
        plan = plan_shards(config, "float16", devices, context=context, reserve=reserve)
        check(plan, devices, reserve)
        return plan

    try:
        planned([0] * len(sizes))
        return
    except ModelTooLarge as error:
        refused = error
    assert f"{sum(refused.missing):,} bytes are missing" in str(refused)
    planned(list(refused.missing))
    if reserve is not None:
        with pytest.raises(ModelTooLarge):
            planned([max(refused.missing) - 1] * len(sizes))


def brute_force(
    config: BloomConfig, parts: ModuleBytes, sizes: list[int], context: int
) -> tuple[int, int | float] | None:
    """The least largest read over all ways to cut, and the most KV tokens with it, by trying every one."""
    token = layer_token_bytes(config, "float32")
    units, found = config.layers + 2, []
    for cuts in combinations_with_replacement(range(units + 1), len(sizes) - 1):
        reads, tokens, fits = [], [], True
        for size, (start, stop) in zip(sizes, pairwise((0, *cuts, units)), strict=True):
            if start == stop:
                continue
            blocks = sum(1 for unit in range(start, stop) if 1 <= unit <= config.layers)
            first, last = start == 0, stop == units
            embedding = parts.embedding if first or (last and config.tied) else 0
            weights = embedding + blocks * parts.block + first * parts.embedding_norm + last * parts.final_norm
            weights += last * (0 if config.tied else parts.head)
            reads.append(
                blocks * parts.block + first * parts.embedding_norm + last * (parts.final_norm + parts.embedding)
            )
            held = (size - weights) // (blocks * token) // 16 * 16 if blocks else float("inf")
            tokens.append(held)
            fits = fits and weights <= size and held >= context
        if fits:
            found.append((max(reads), -min(tokens)))
    return (min(found)[0], -min(found)[1]) if found else None


@settings(max_examples=150)
@given(config=shapes(), sizes=st.lists(st.integers(0, 200_000), min_size=2, max_size=4))
def test_the_balance_is_the_best_there_is(config: BloomConfig, sizes: list[int]) -> None:
    """No other cut that fits has a faster slowest stage, or as fast a one and more room for keys and values."""
    best = brute_force(config, bytes_of_shapes(config, "float32"), sizes, 32)
    try:
        plan = plan_shards(config, "float32", gpus(*sizes), context=32, reserve=0)
    except ModelTooLarge:
        assert best is None
    else:
        assert (plan.largest_step_bytes, plan.kv_tokens) == best


def test_the_head_weighs_as_five_blocks_on_7b1() -> None:
    """The last of four stages holds six layers fewer: the head is read whole in every step."""
    parts = bytes_of_shapes(BLOOM_7B1, "bfloat16")
    assert 5.0 < parts.head / parts.block < 5.2
    plan = plan_shards(BLOOM_7B1, "bfloat16", gpus(*[16 * GIB] * 4))
    assert [len(stage.layers) for stage in plan.stages] == [9, 9, 9, 3]
    assert plan.imbalance < 1.03
    assert plan.filled_step_bytes is not None
    assert plan.filled_step_bytes > 3.8 * plan.largest_step_bytes


def test_a_tied_head_is_shared_on_one_device_and_copied_to_another() -> None:
    """Bytes count once where embedding and head are one tensor, and twice where each device needs its own."""
    alone, apart = (plan_shards(SMALL, "float32", gpus(*[10_000_000] * count)) for count in (1, 2))
    assert alone.weight_bytes == 4 * parameters(SMALL)
    assert apart.weight_bytes - alone.weight_bytes == 4 * SMALL.vocab * SMALL.hidden
    assert HEAD not in {name for stage in apart.stages for name in stage.tensors(SMALL)}


def test_unequal_devices_hold_what_they_can() -> None:
    """A small device takes fewer layers than the balance would give it, and a tiny one none."""
    plan = plan_shards(BLOOM_7B1, "bfloat16", gpus(8 * GIB, 24 * GIB))
    assert len(plan.stages[0].layers) < len(plan.stages[1].layers)
    without = plan_shards(BLOOM_7B1, "bfloat16", gpus(16 * GIB, GIB // 4, 16 * GIB))
    assert [device.name for device in without.idle] == ["cuda:1"]


def test_devices_too_many_are_the_last_ones() -> None:
    """With more devices than parts of the model, those at the end stay idle."""
    plan = plan_shards(SMALL, "float32", gpus(*[10_000_000] * 9))
    assert [device.name for device in plan.idle] == ["cuda:7", "cuda:8"]


def test_keys_and_values_are_counted_in_blocks() -> None:
    """A sequence takes whole blocks, and the stage with the least room decides for all."""
    plan = plan_shards(SMALL, "float32", gpus(700_000, 900_000), context=100, reserve=0)
    assert plan.kv_tokens == min(stage.kv_tokens for stage in plan.stages if stage.kv_tokens is not None)
    assert plan.kv_blocks * PAGE == plan.kv_tokens
    assert plan.sequences(16) == plan.kv_blocks
    assert plan.sequences(17) == plan.kv_blocks // 2


@pytest.mark.parametrize(
    ("dtype", "sizes", "said", "unsaid"),
    [
        ("float32", [4 * GIB] * 2, ["does not fit", "on cuda:0", "on cuda:1", "bfloat16", "more devices"], "shorter"),
        ("bfloat16", [4 * GIB] * 2, ["does not fit", "more devices"], "use bfloat16"),
        (
            "bfloat16",
            [15 * GIB],
            ["but not for one sequence of 2,048 tokens", "are missing on cuda:0", "shorter"],
            "float32",
        ),
    ],
)
def test_a_refusal_names_bytes_and_remedies(dtype: str, sizes: list[int], said: list[str], unsaid: str) -> None:
    """Whoever is refused reads what is missing, where, and what would help."""
    with pytest.raises(ModelTooLarge) as refused:
        plan_shards(BLOOM_7B1, dtype, gpus(*sizes))
    assert all(words in str(refused.value) for words in said)
    assert unsaid not in str(refused.value)


def test_a_reserve_is_kept() -> None:
    """A gibibyte of a large device and an eighth of a small one stay free, unless told otherwise."""
    assert reserved(80 * GIB, None) == reserved(8 * GIB, None) == GIB
    assert reserved(4 * GIB, None) == GIB // 2
    assert reserved(4 * GIB, 7) == 7
    for need in (1, 1000, 7 * GIB - 1, 7 * GIB, 50 * GIB):
        assert with_reserve(need, None) - reserved(with_reserve(need, None), None) >= need


def test_one_device_is_planned_without_transformers() -> None:
    """A worker on one device does not pay the seconds that transformers and accelerate take to load."""
    code = (
        "import sys; from workers.engine.planner import plan_shards; from workers.engine.presets import PRESETS;"
        "from workers.engine.shard_plan import Device;"
        "plan_shards(PRESETS['bigscience/bloom-7b1'], 'bfloat16', [Device('cuda:0', 80 << 30)]);"
        "sys.exit(bool({'transformers', 'accelerate'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


H, LAYERS, VOCAB = 4096, 30, 250_880
BLOCK_INT8 = 12 * H * H + 4 * (3 * H + H + 4 * H + H) + 2 * 13 * H
"""A block by hand: 12 h^2 bytes, an fp32 scale for each of 9 h rows, 13 h of biases and norms in bfloat16."""
HEAD_INT8 = VOCAB * H + 4 * VOCAB
KV_INT8 = LAYERS * 2 * (H + 4 * 32)
"""A token by hand: a byte for each number, and an fp32 scale for each of 32 heads, of keys and of values."""


def test_eight_bits_are_counted() -> None:
    """Weights, their scales, the head beside the embedding, and keys and values; biases and norms stay as they were."""
    plan = plan_shards(BLOOM_7B1, "bfloat16", gpus(24 * GIB), quantization="int8", kv_dtype="int8")
    assert plan.step_bytes == LAYERS * BLOCK_INT8 + HEAD_INT8 + 2 * 4 * H
    assert plan.weight_bytes == plan.step_bytes + 2 * VOCAB * H
    assert plan.kv_token_bytes == KV_INT8 == 253_440
    assert plan.kv_tokens == (23 * GIB - plan.weight_bytes) // KV_INT8 // PAGE * PAGE
    fp8 = plan_shards(BLOOM_7B1, "bfloat16", gpus(24 * GIB), quantization="int8", kv_dtype="fp8")
    assert fp8.kv_tokens == plan.kv_tokens


@pytest.mark.parametrize(
    ("count", "gib", "eight", "layers", "kv_tokens"),
    [
        (2, 10, False, [17, 13], 2_720),
        (2, 10, True, [18, 12], 26_160),
        (4, 6, False, [8, 9, 9, 4], 2_736),
        (4, 6, True, [9, 9, 9, 3], 23_248),
    ],
)
def test_bloom_7b1_fits_small_cards(count: int, gib: int, eight: bool, layers: list[int], kv_tokens: int) -> None:
    """Two of 10 GiB or four of 6 GiB hold it, in bfloat16 with one long sequence, in 8 bits with many."""
    chosen = {"quantization": "int8", "kv_dtype": "int8"} if eight else {}
    plan = plan_shards(BLOOM_7B1, "bfloat16", gpus(*[gib * GIB] * count), **chosen)
    assert [len(stage.layers) for stage in plan.stages] == layers
    assert plan.kv_tokens == kv_tokens
    # By hand: the first device has the embedding with its norm beside its layers, and decides here.
    block = BLOCK_INT8 if eight else 2 * (12 * H * H + 13 * H)
    token = (KV_INT8 if eight else 491_520) // LAYERS * layers[0]
    kept = min(GIB, gib * GIB // 8)
    room = gib * GIB - kept - layers[0] * block - 2 * VOCAB * H - 2 * 2 * H
    assert kv_tokens == room // token // PAGE * PAGE
