"""The native stage computes what transformers computes, whatever shares the step, and is never required."""

from __future__ import annotations

import math
import os
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from torch import Tensor
from torch.nn import functional
from transformers import BloomForCausalLM

from benchmarks.workload import random_weights, save_bloom
from tests.engine import reference
from workers.engine.checkpoint import BloomConfig, find_checkpoint
from workers.engine.native import build, library, selftest
from workers.engine.native.build import BuildFailed
from workers.engine.native.stage import NativeStage
from workers.engine.weights import Weights
from workers.tiny_bloom import FOLDER
from workers.tiny_bloom.train import encode, held_out_stories

SHAPES = {
    "3 heads of 24": BloomConfig(vocab=515, hidden=72, layers=2, heads=3),
    "1 head of 40, explicit head": BloomConfig(vocab=300, hidden=40, layers=2, heads=1, tied=False),
    "8 heads of 8, post-norm residual": BloomConfig(vocab=129, hidden=64, layers=3, heads=8, residual_post_norm=True),
    "2 heads of 64": BloomConfig(vocab=331, hidden=128, layers=2, heads=2),
    "2 heads of 128": BloomConfig(vocab=260, hidden=256, layers=1, heads=2),
}
BLOCK = 256
PERPLEXITY_LOSS = 0.01

needs_library = pytest.mark.usefixtures("compiler")


@dataclass
class Made:
    """Weights made up, as ``Weights`` gives them out."""

    config: BloomConfig
    seed: int = 3
    dtype: torch.dtype = torch.float32
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tensors = random_weights(self.config, self.seed)

    @property
    def has_head(self) -> bool:
        return not self.config.tied

    def take(self, name: str) -> Tensor:
        return self.tensors[name]


@dataclass
class Memory:
    """A KV cache of blocks, filled with NaN: what was not stored must not be read."""

    config: BloomConfig
    blocks: int = 8
    layers_: range | None = None

    def __post_init__(self) -> None:
        self.heads = self.config.heads
        shape = (2, self.blocks * BLOCK * self.heads, self.config.head_dim)
        self.layers = [torch.full(shape, math.nan) for _ in self.layers_ or range(self.config.layers)]


def stage(
    weights: Made, layers: range | None = None, *, threads: int = 2, quantization: str | None = None
) -> NativeStage:
    whole = range(weights.config.layers)
    layers = whole if layers is None else layers
    return NativeStage(
        weights,
        layers,
        first=layers.start == 0,
        last=layers.stop == whole.stop,
        threads=threads,
        quantization=quantization,
    )


def transformer(weights: Made, folder: Path) -> BloomForCausalLM:
    return reference.load(save_bloom(folder / "bloom", weights.config, weights.seed))


def spans(*rows: tuple[int, int, int]) -> Tensor:
    """(block, start, count) of each span, as a stage takes them."""
    return torch.tensor([(block * BLOCK, BLOCK, start, count) for block, start, count in rows], dtype=torch.int64)


def tokens(config: BloomConfig, count: int, seed: int = 0) -> Tensor:
    return torch.randint(config.vocab, (count,), generator=torch.Generator().manual_seed(seed))


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


@needs_library
def test_the_self_test_finds_a_wrong_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that computes something else is not used, and the reason is a number."""
    right = library.open_library()
    assert selftest.mismatch(right) is None
    wrong = library.open_library()
    wrong.set_norm = lambda stage, which, weight, _: right.set_norm(stage, which, weight, weight)
    assert "differ from torch's" in (selftest.mismatch(wrong) or "")


@pytest.mark.fast
@needs_library
def test_other_dtypes_are_left_to_torch() -> None:
    """Half precision and unknown quantizations are refused when the stage is made."""
    with pytest.raises(ValueError, match="bfloat16"):
        stage(Made(SHAPES["2 heads of 64"], dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="int3"):
        stage(Made(SHAPES["2 heads of 64"]), quantization="int3")


@needs_library
@pytest.mark.parametrize("march", ["x86-64-v3", "x86-64"])
def test_narrow_vectors_compute_the_same(march: str, tmp_path: Path) -> None:
    """Libraries for older CPUs pass the self-test, too."""
    if os.uname().machine != "x86_64":
        pytest.skip("x86 only: the levels are x86's")
    path = tmp_path / "narrow.so"
    build.compile_to(path, build.find_compiler(), march)
    narrow = library.Library(path)
    assert narrow.width < 16
    assert selftest.mismatch(narrow) is None


@pytest.fixture
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of our own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@needs_library
def test_the_second_load_compiles_nothing(cache_home: Path) -> None:
    """And leaves a private folder with one whole file in it."""
    assert build.find().compiled
    assert not build.find().compiled
    folder = cache_home / "bloomfarm/native"
    assert len(list(folder.iterdir())) == 1
    assert folder.stat().st_mode & 0o777 == 0o700


@needs_library
def test_a_broken_library_is_built_anew(cache_home: Path) -> None:
    """A file that does not load is replaced, once."""
    path = build.find().path
    path.unlink()
    path.write_bytes(b"no library")
    assert library.open_library().version == library.VERSION
    assert path.stat().st_size > len(b"no library")


@pytest.mark.fast
@needs_library
def test_an_unsafe_folder_is_refused(cache_home: Path) -> None:
    """Others could put code there that the engine would run."""
    folder = cache_home / "bloomfarm/native"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(BuildFailed, match="0700"):
        build.find()


@pytest.mark.fast
def test_without_a_compiler_there_is_no_library_and_a_reason(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The farm runs on torch then."""
    monkeypatch.setenv("PATH", str(cache_home))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(BuildFailed, match=r"install g\+\+"):
        build.find()
    library.load.cache_clear()
    try:
        with capture_logs() as logs:
            assert library.load() is None
    finally:
        library.load.cache_clear()
    assert [log["event"] for log in logs] == ["native_stage_unavailable"]
    assert "install g++" in logs[0]["reason"]


@pytest.mark.fast
def test_the_compiler_of_the_extra_is_found_last(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``pip install 'bloomfarm[native]'`` serves a machine that has no other; $CXX and the path come first."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "ziglang")
    monkeypatch.setenv("PATH", str(cache_home))
    monkeypatch.delenv("CXX", raising=False)
    assert build.find_compiler() == [sys.executable, "-m", "ziglang", "c++"]
    compiler = cache_home / "g++"
    compiler.touch(mode=0o755)
    assert build.find_compiler() == ["g++"]


@needs_library
def test_a_failing_compiler_is_named(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its exit status, and no half-written file is left."""
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(BuildFailed, match="false ended with 1"):
        build.find()
    assert not list((cache_home / "bloomfarm/native").iterdir())


@needs_library
def test_what_a_killed_build_left_is_swept(cache_home: Path) -> None:
    """Half a library is removed once no build can still be at it."""
    folder = cache_home / "bloomfarm/native"
    folder.mkdir(parents=True, mode=0o700)
    old, new = folder / f"old{build.UNFINISHED}", folder / f"new{build.UNFINISHED}"
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    build.find()
    assert not old.exists()
    assert new.exists()


@needs_library
def test_a_folder_that_can_not_be_made_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only home costs speed, not the start."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BuildFailed, match="XDG_CACHE_HOME"):
        build.find()


@needs_library
def test_a_prebuilt_library_needs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that `--into` made is found by the sources' hash, if the CPU can run it."""
    level = next((level for level, needed in build._LEVELS.items() if needed <= build.cpu_flags()), None)
    if level is None:
        pytest.skip("this CPU runs no level that is prebuilt")
    monkeypatch.setattr("sys.argv", ["build", "--into", str(tmp_path), "--march", level])
    build.main()
    monkeypatch.setattr(build, "PREBUILT", tmp_path)
    monkeypatch.setattr(build, "find_compiler", lambda: pytest.fail("it looked for a compiler"))
    found = build.find()
    assert found.path.parent == tmp_path
    assert selftest.mismatch(library.Library(found.path)) is None


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
