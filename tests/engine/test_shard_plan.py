"""A Bloom is planned over devices from its shape alone: it fits, nothing is lost, and the slowest stage is fastest."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from itertools import combinations_with_replacement, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engine.checkpoint import BloomConfig
from workers.engine.kv.paged import PAGE
from workers.engine.module_bytes import ModuleBytes, bytes_of_shapes, layer_token_bytes
from workers.engine.planner import SLOWER_PART, plan_shards
from workers.engine.presets import PRESETS, parameters
from workers.engine.reserve import logits_bytes, reserved
from workers.engine.shard_plan import Device, ModelTooLarge, ShardPlan
from workers.engine.weights import HEAD

GIB = 1 << 30
BLOOM_7B1 = PRESETS["bigscience/bloom-7b1"]
SMALL = BloomConfig(vocab=300, hidden=32, layers=5, heads=4)
CONTEXT = 32
"""Of the plans that are held against every other one."""


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
        kept = reserved(stage.device.bytes, reserve) + stage.logits_bytes
        assert stage.weight_bytes + kv_bytes + kept <= stage.device.bytes
        assert bool(stage.logits_bytes) == stage.has_head
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
        plan = plan_shards(config, "float16", devices, context=context, slots=2, reserve=reserve)
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
    config: BloomConfig, parts: ModuleBytes, sizes: list[int], logits: int, slots: int
) -> tuple[int, int] | None:
    """The largest read of the best cut, and the KV tokens that slots can use of it, by trying every one."""
    token = layer_token_bytes(config, "float32")
    units, found = config.layers + 2, []
    for cuts in combinations_with_replacement(range(units + 1), len(sizes) - 1):
        reads, tokens, fits = [], [], True
        for size, (start, stop) in zip(sizes, pairwise((0, *cuts, units)), strict=True):
            if start == stop:
                continue
            first, last = start == 0, stop == units
            blocks = stop - start - first - last
            read = blocks * parts.block + first * parts.embedding_norm + last * (parts.final_norm + parts.head)
            held = read + first * parts.embedding - (parts.head if parts.is_tied and first and last else 0)
            room = size - held - last * logits
            tokens.append(min(room // (blocks * token) // 16 * 16, slots * CONTEXT) if blocks else slots * CONTEXT)
            reads.append(read)
            fits = fits and room >= 0 and tokens[-1] >= CONTEXT
        if fits:
            found.append((max(reads), min(tokens)))
    if not found:
        return None
    least = min(found)[0]
    quick = [(read, kv) for read, kv in found if read * SLOWER_PART <= least * (SLOWER_PART + 1)]
    return max(quick, key=lambda cut: (Fraction(cut[1], cut[0]), -cut[0]))


def check_best(config: BloomConfig, sizes: list[int], slots: int, quantization: str | None) -> None:
    """Hold a plan against ``brute_force``."""
    logits = logits_bytes(config.vocab, slots, "float32", quantization)
    best = brute_force(config, bytes_of_shapes(config, "float32", quantization), sizes, logits, slots)
    try:
        plan = plan_shards(
            config, "float32", gpus(*sizes), context=CONTEXT, slots=slots, reserve=0, quantization=quantization
        )
    except ModelTooLarge:
        assert best is None
    else:
        assert (plan.largest_step_bytes, min(plan.kv_tokens, slots * CONTEXT)) == best


@settings(max_examples=150)
@given(config=shapes(), sizes=st.lists(st.integers(0, 200_000), min_size=2, max_size=4), slots=st.integers(1, 2))
def test_the_balance_is_the_best_there_is(config: BloomConfig, sizes: list[int], slots: int) -> None:
    """No other cut that fits, and is within a twentieth of the quickest, gives more usable tokens a byte read."""
    check_best(config, sizes, slots, None)


@settings(max_examples=250)
@given(
    layers=st.integers(10, 30),
    vocab=st.integers(1, 100),
    tied=st.booleans(),
    extra=st.lists(st.integers(0, 400_000), min_size=2, max_size=3),
    slots=st.integers(2, 40),
)
def test_the_balance_of_many_layers_is_the_best_there_is(
    layers: int, vocab: int, tied: bool, extra: list[int], slots: int
) -> None:
    """The same where many cuts are nearly as quick, and memory is short."""
    config = BloomConfig(vocab=vocab, hidden=4, layers=layers, heads=2, tied=tied)
    parts = bytes_of_shapes(config, "float32", "int8")
    share = (layers * (parts.block + CONTEXT * layer_token_bytes(config, "float32"))) // len(extra)
    logits = logits_bytes(vocab, slots, "float32", "int8")
    check_best(
        config, [share + parts.embedding + more for more in extra[:-1]] + [share + logits + extra[-1]], slots, "int8"
    )


@pytest.mark.parametrize(
    ("layers", "vocab", "sizes", "slots", "largest", "tokens"),
    [
        (23, 20, [158_263, 160_980, 186_358, 249_611], 44, 3_296, 800),
        (10, 76, [126_433, 83_599, 137_596], 20, 2_208, 624),
    ],
)
def test_a_step_is_not_longer_than_its_room_is_worth(
    layers: int, vocab: int, sizes: list[int], slots: int, largest: int, tokens: int
) -> None:
    """A cut that reads 3 or 5% more, and has room for 2 or 3% more tokens, is left alone."""
    config = BloomConfig(vocab=vocab, hidden=4, layers=layers, heads=2, tied=False)
    check_best(config, sizes, slots, "int8")
    plan = plan_shards(config, "float32", gpus(*sizes), context=32, slots=slots, reserve=0, quantization="int8")
    assert (plan.largest_step_bytes, plan.kv_tokens) == (largest, tokens)


def test_the_head_weighs_as_five_blocks_on_7b1() -> None:
    """The last of four stages with room enough holds six layers fewer: the head is read whole in every step."""
    parts = bytes_of_shapes(BLOOM_7B1, "bfloat16")
    assert 5.0 < parts.head / parts.block < 5.2
    plan = plan_shards(BLOOM_7B1, "bfloat16", gpus(*[80 * GIB] * 4))
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
    plan = plan_shards(SMALL, "float32", gpus(700_000, 900_000), context=100, slots=1, reserve=0)
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


def test_one_device_is_planned_without_transformers() -> None:
    """A worker on one device does not pay the seconds that transformers and accelerate take to load."""
    code = (
        "import sys; from workers.engine.planner import plan_shards; from workers.engine.presets import PRESETS;"
        "from workers.engine.shard_plan import Device;"
        "plan_shards(PRESETS['bigscience/bloom-7b1'], 'bfloat16', [Device('cuda:0', 80 << 30)]);"
        "sys.exit(bool({'transformers', 'accelerate'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
