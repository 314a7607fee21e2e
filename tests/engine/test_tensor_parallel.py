"""A Bloom shared by ranks, a process each over gloo: the same tokens, its parts, and what is refused."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.byte_bpe import FIRST_BYTE
from benchmarks.workload import save_bloom
from farm.errors import ModelRefused
from farm.settings import EngineSettings, ModelSettings
from tests.conftest import wait_until
from tests.engine import reference, scarce_rank
from tests.engine.driving import bloom, drive
from tests.engine.gpu import triton_attention
from tests.engine.test_process import engine
from workers.engine.bloom import Bloom
from workers.engine.checkpoint import BloomConfig, Checkpoint, find_checkpoint
from workers.engine.engine import Engine
from workers.engine.kv.arena import Block
from workers.engine.kv.manager import Clear, Copy
from workers.engine.layout import Layout, Span
from workers.engine.loading import place
from workers.engine.planner import plan_shards
from workers.engine.presets import PRESETS
from workers.engine.protocol import Add, SamplingParams
from workers.engine.sequence import Pages
from workers.engine.shard_plan import Device, ModelTooLarge
from workers.engine.tensor_parallel import ranks as ranks_module
from workers.engine.tensor_parallel.cut import Rank
from workers.engine.tensor_parallel.group import backend_of
from workers.engine.tensor_parallel.member import Member
from workers.engine.tensor_parallel.plan import plan_ranks
from workers.engine.tensor_parallel.ranks import Ranks
from workers.engine.tensor_parallel.wire import decode_layout, encode_layout
from workers.engine.weights import EMBEDDING, Weights, expected_shapes

SHAPE = BloomConfig(vocab=300, hidden=64, layers=2, heads=4)


@contextmanager
def ranked(folder: Path | str, ranks: int = 2, **engine: Any) -> Iterator[Bloom]:
    """A Bloom over ranks whose processes are gone at the end."""
    model = bloom(folder, tensor_parallel=ranks, **engine)
    [shard] = model._launcher._pipeline._shards
    assert isinstance(shard, Ranks)
    children = _rank_processes()
    assert len(children) == ranks - 1
    try:
        yield model
    finally:
        shard.close()
    assert not any(child.is_running() for child in children)


def _rank_processes() -> list[psutil.Process]:
    """Children of this process that are ranks, or are about to be."""
    return [child for child in psutil.Process().children() if "--fd" in child.cmdline()]


def _is_gone(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return True


def _check(folder: Path, adds: list[Add], engine: Engine, arrive: list[int]) -> None:
    said = drive(engine, adds, arrive)
    for add in adds:
        assert isinstance(add.prompt, list)
        assert said[add.id].reason == "length"
        expected = reference.generate(folder, add.prompt, add.params.max_tokens)
        reference.assert_same(folder, add.prompt, expected, said[add.id].ids)
    generated = [token for one in said.values() for token in one.ids]
    assert len(set(generated)) > len(generated) / 16, "the texts only repeat themselves: the comparison proves nothing"


CASES: dict[str, tuple[BloomConfig, int, dict[str, object]]] = {
    "3 heads each": (BloomConfig(vocab=512, hidden=96, layers=2, heads=6), 2, {}),
    "slopes of 12 heads, a vocabulary of unequal parts, pages": (
        BloomConfig(vocab=601, hidden=96, layers=2, heads=12),
        3,
        {"kv_layout": "paged"},
    ),
    "post-norm residual, pages": (
        BloomConfig(vocab=401, hidden=64, layers=3, heads=8, residual_post_norm=True),
        2,
        {"kv_layout": "paged"},
    ),
    "1 head each, explicit head": (BloomConfig(vocab=350, hidden=32, layers=2, heads=2, tied=False), 2, {}),
}


@pytest.mark.parametrize(("shape", "ranks", "layout"), CASES.values(), ids=CASES.keys())
def test_tokens_of_ranks_are_those_of_generate(
    shape: BloomConfig, ranks: int, layout: dict[str, object], tmp_path: Path
) -> None:
    """Sequences that arrive at random, share beginnings, run short of memory and are computed again get, from several
    processes, the tokens that they would get alone."""
    folder = save_bloom(tmp_path / "bloom", shape, seed=3, scale=6.0)
    rng = random.Random(shape.heads)

    def some(count: int) -> list[int]:
        return [rng.randrange(FIRST_BYTE, shape.vocab) for _ in range(count)]

    begin = some(70)
    prompts = [some(rng.choice([1, 7, 20, 45])) for _ in range(8)] + [begin + some(rng.randint(1, 30)) for _ in "abc"]
    adds = [
        Add(str(i), prompt, SamplingParams(max_tokens=rng.randint(20, 60), ignore_eos=True))
        for i, prompt in enumerate(prompts)
    ]
    kv_bytes = 256 * 2 * shape.layers * shape.hidden * 4
    with ranked(folder, ranks, max_slots=8, kv_bytes=max(kv_bytes, 1 << 16), **layout) as model:
        assert model.depth == 1
        engine = Engine(model, prefill_budget=24)
        _check(folder, adds, engine, [rng.randint(0, 30) for _ in range(8)] + [200, 300, 400])
        assert engine.stats.preemptions > 0, "memory never ran short: nothing was shown"
        assert engine.stats.cached_prompt_tokens > 0, "no beginning was shared: nothing was shown"


def test_tiny_bloom_over_ranks_says_the_same_and_listens_on_loopback_only() -> None:
    """The default model in two processes; no socket of theirs can be reached from another machine."""
    folder = Path(__file__).parents[2] / "workers/tiny_bloom"
    with ranked("tiny-bloom", prefill_budget=16) as model:
        assert model.ready.kernels == "torch on cpu, cpu in 2 ranks"
        texts = ("Once upon a time", "The little farm", "She opened the door and", "One day")
        adds = [
            Add(str(i), model.encode(text), SamplingParams(max_tokens=48, ignore_eos=True))
            for i, text in enumerate(texts)
        ]
        _check(folder, adds, Engine(model, prefill_budget=16), [0, 3, 5, 20])
        [other] = _rank_processes()
        listening = [
            connection.laddr.ip
            for process in (psutil.Process(), other)
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert len(listening) >= 2, "gloo listens somewhere else: nothing was shown"
        assert set(listening) <= {"127.0.0.1", "::1"}


def test_ranks_attend_their_heads_by_triton_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on GPUs, each with its heads' slopes: prompts in chunks and decode rows give the tokens of generate."""
    monkeypatch.setattr("workers.engine.tensor_parallel.member.TorchAttention", type(triton_attention()))
    monkeypatch.setattr(ranks_module, "_PROGRAM", (sys.executable, "-m", "tests.engine.triton_rank"))
    folder = save_bloom(tmp_path / "bloom", SHAPE, seed=3, scale=6.0)
    rng = random.Random(7)
    adds = [
        Add(
            str(size),
            [rng.randrange(FIRST_BYTE, SHAPE.vocab) for _ in range(size)],
            SamplingParams(max_tokens=5, ignore_eos=True),
        )
        for size in (1, 23)
    ]
    with ranked(folder, kv_layout="paged", max_context=64) as model:
        assert model.ready.kernels == "triton on cpu, cpu in 2 ranks"
        _check(folder, adds, Engine(model, prefill_budget=17), [0, 2])


@pytest.mark.parametrize("at", [0, -1], ids=["rank 0", "rank 1"])
def test_a_rank_that_finds_a_damaged_part_refuses_the_model(at: int, tmp_path: Path) -> None:
    """Whichever rank reads the infinite number says so, and no process is left behind."""
    folder = save_bloom(tmp_path / "bloom", SHAPE)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    [name] = [name for name in tensors if name.endswith("h.1.mlp.dense_4h_to_h.weight")]
    tensors[name][3, at] = float("inf")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelRefused, match=r"h\.1\.mlp\.dense_4h_to_h\.weight holds NaN or infinity"):
        bloom(folder, tensor_parallel=2)
    assert _rank_processes() == []


def test_weights_that_are_in_no_files_are_not_shared(tmp_path: Path) -> None:
    """Other ranks read the checkpoint's files, whatever rank 0 was given: it is refused before a process is started."""
    folder = str(save_bloom(tmp_path / "bloom", SHAPE))

    def made_up(checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> Weights:
        raise AssertionError("nothing was to be read")

    with pytest.raises(ModelRefused, match=r"TENSOR_PARALLEL=2 has each rank read its part .* are in none; unset it"):
        Bloom(ModelSettings(id=folder), EngineSettings(tensor_parallel=2, threads=1), open_weights=made_up)
    assert _rank_processes() == []


def test_ranks_that_are_killed_while_they_load_leave_nothing_behind(tmp_path: Path) -> None:
    """No file in the folder for temporary ones, also where nobody could clean up, and no process. Until then every rank
    numbers GPUs as nvidia-smi does, unless told otherwise."""
    folder, temporary = save_bloom(tmp_path / "bloom", SHAPE), tmp_path / "temporary"
    temporary.mkdir()
    setting = {"FARM_MODEL__ID": str(folder), "FARM_ENGINE__TENSOR_PARALLEL": "2", "TMPDIR": str(temporary)}
    with engine(**setting) as (_, process):
        rank_0 = psutil.Process(process.pid)
        wait_until(rank_0.children, why="the other rank to start", timeout_s=60)
        [other] = rank_0.children()
        assert other.environ()["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        process.kill()
        process.wait()
        wait_until(lambda: _is_gone(other), why="the other rank to end", timeout_s=20)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_without_memory_for_a_step_changes_no_token(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever rank finds none, before a step or inside of it, all give the step up and less is computed at once."""
    folder = save_bloom(tmp_path / "bloom", SHAPE, scale=6.0)
    if rank:
        monkeypatch.setattr(ranks_module, "_PROGRAM", (sys.executable, "-m", "tests.engine.scarce_rank"))
    else:
        monkeypatch.setattr(Member, "_prepare", scarce_rank.scarce)
    rng = random.Random(2)
    adds = [
        Add(
            str(i),
            [rng.randrange(FIRST_BYTE, SHAPE.vocab) for _ in range(rng.randint(20, 60))],
            SamplingParams(max_tokens=20, ignore_eos=True),
        )
        for i in range(6)
    ]
    with ranked(folder, max_slots=6) as model:
        engine = Engine(model, prefill_budget=64)
        _check(folder, adds, engine, [])
        assert engine.stats.out_of_memory >= 2, "both kinds of shortage were to come"


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        ({"tensor_parallel": 3}, r"4 attention heads .*TENSOR_PARALLEL=3 ranks; give it one of 1, 2, 4$"),
        ({"tensor_parallel": 2, "quantization": "int8"}, r"QUANTIZATION=int8 .*; unset one of the two$"),
        ({"tensor_parallel": 4, "devices": ["cpu", "cpu"]}, r"takes 4 devices.*there are 2: cpu, cpu; name 4 in"),
    ],
    ids=["heads", "int8", "devices"],
)
def test_what_ranks_can_not_share_is_refused(engine: dict[str, Any], reason: str) -> None:
    """Before a weight is read or a process started, with what to set instead."""
    with pytest.raises(ModelRefused, match=reason):
        place(SHAPE, ModelSettings(), EngineSettings(**engine))


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
