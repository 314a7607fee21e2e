"""A Bloom shared by ranks, a process each over gloo: the same tokens, its parts, and what is refused."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from workers.engine.checkpoint import BloomConfig, Checkpoint
from workers.engine.engine import Engine
from workers.engine.loading import place
from workers.engine.protocol import Add, SamplingParams
from workers.engine.tensor_parallel import ranks as ranks_module
from workers.engine.tensor_parallel.member import Member
from workers.engine.tensor_parallel.ranks import Ranks
from workers.engine.weights import Weights

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
