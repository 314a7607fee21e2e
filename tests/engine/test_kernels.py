"""Packed linears and attention of many rows at once compute what plain torch computes."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from workers.engine.kernels import decode
from workers.engine.kernels.attention import alibi_slopes, bias_of, weigh
from workers.engine.kernels.grouping import GROUP_COST, group_rows
from workers.engine.kernels.int8 import gelu, int8_linear, int_multiply
from workers.engine.kernels.linear import Linear, agrees, fastest_backend
from workers.engine.kv.arena import Arena, Block
from workers.engine.kv.cache import KVCache


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", ["torch", "onednn", "mkl"])
@pytest.mark.parametrize("rows", [1, 3, 16, 37])
def test_every_backend_computes_the_linear_layer(backend: str, rows: int) -> None:
    """Plain, with GELU, with a residual, and without a bias."""
    if backend == "mkl" and not torch.backends.mkl.is_available():
        pytest.skip("this torch has no MKL")
    if backend == "onednn" and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    weight, bias, x, residual = noise(48, 32), noise(48, seed=1), noise(rows, 32, seed=2), noise(rows, 48, seed=3)
    wanted = functional.linear(x, weight, bias)
    layer = Linear(weight, bias, backend)
    for got, want in (
        (layer.apply(x), wanted),
        (layer.apply_gelu(x), gelu(wanted)),
        (layer.apply_add(x, residual), wanted + residual),
        (Linear(weight, None, backend).apply(x), functional.linear(x, weight)),
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_a_backend_with_another_gelu_is_not_chosen() -> None:
    """GELU is compared, too: torch's fused operator is by erf on a CPU, and Bloom's by tanh."""
    weight, bias, x = noise(48, 40), noise(48), noise(16, 40)
    layer = Linear(weight, bias, "epilogue")
    torch.testing.assert_close(layer.apply(x), functional.linear(x, weight, bias))
    torch.testing.assert_close(layer.apply_add(x, layer.apply(x)), 2 * functional.linear(x, weight, bias))
    assert agrees("torch", weight, bias, x)
    assert not agrees("epilogue", weight, bias, x)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gelu_is_fused_on_a_gpu(dtype: torch.dtype) -> None:
    """The operator that computes GELU with the product agrees there, and is the one that is used."""
    weight, bias, x = (tensor.to("cuda", dtype) for tensor in (noise(512, 128), noise(512), noise(16, 128)))
    assert agrees("epilogue", weight, bias, x)
    assert fastest_backend(weight) == "epilogue"


def test_some_backend_is_always_found() -> None:
    """The probe names a backend for every dtype, private operators or not."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        layer = Linear(noise(24, 16).to(dtype), None)
        assert layer.backend == fastest_backend(noise(24, 16).to(dtype))
        assert layer.apply(noise(2, 16).to(dtype)).dtype is dtype


@pytest.mark.parametrize("private", [True, False], ids=["_int_mm", "float"])
def test_int8_is_near_and_rows_are_independent(private: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's private operator and without it: a row alone and among others is the same, bit by bit."""
    if not private:
        monkeypatch.delattr(torch, "_int_mm")
    int_multiply.cache_clear()
    weight, bias, x, residual = noise(48, 2048), noise(48, seed=1), noise(37, 2048, seed=2), noise(37, 48, seed=3)
    layer = Linear(weight, bias, quantization="int8")
    int_multiply.cache_clear()
    x[5] *= 1000
    wanted = functional.linear(x, weight, bias)
    for apply, want in (
        (layer.apply, wanted),
        (layer.apply_gelu, gelu(wanted)),
        (lambda rows: layer.apply_add(rows, residual[: len(rows)]), wanted + residual),
    ):
        got = apply(x)
        assert ((got - want).norm(dim=1) / want.norm(dim=1)).max() < 0.02
        assert torch.equal(apply(x[:1]), got[:1])
        assert torch.equal(apply(x[:16]), got[:16])
    x[3, 7] = float("nan")
    assert layer.apply(x).isnan().all(1).tolist() == [row == 3 for row in range(37)]
    assert not layer.apply(torch.zeros(1, 2048)).sub(bias).any()


class _Gpu:
    """torch's operator as CUDA has it: it refuses few rows and odd sizes."""

    def __init__(self) -> None:
        self.calls = 0
        self._int_mm = torch._int_mm

    def __call__(self, rows: Tensor, columns: Tensor) -> Tensor:
        self.calls += 1
        if rows.shape[0] <= 16 or rows.shape[1] % 8 or columns.shape[1] % 8:
            raise RuntimeError("self.size(0) needs to be greater than 16")
        return self._int_mm(rows, columns)


@pytest.mark.parametrize("has_operator", [True, False], ids=["_int_mm", "float"])
@pytest.mark.parametrize(("outs", "ins"), [(48, 64), (53, 61)], ids=["even sizes", "odd sizes"])
def test_int8_is_padded_to_what_a_gpu_takes(
    has_operator: bool, outs: int, ins: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any number of rows and any sizes give the numbers that the CPU gives, bit by bit, operator or not."""
    weight, bias, x = noise(outs, ins), noise(outs, seed=1), noise(37, ins, seed=2)
    plain = Linear(weight, bias, quantization="int8")
    expected = {rows: plain.apply(x[:rows]) for rows in (0, 1, 16, 17, 37)}
    if has_operator:
        monkeypatch.setattr(torch, "_int_mm", gpu := _Gpu())
    else:
        monkeypatch.delattr(torch, "_int_mm")
    int_multiply.cache_clear()
    apply, apply_gelu, apply_add = int8_linear(weight, bias, padded=True)
    int_multiply.cache_clear()
    for rows, wanted in expected.items():
        assert torch.equal(apply(x[:rows]), wanted)
        assert torch.equal(apply_gelu(x[:rows]), gelu(wanted))
        assert torch.equal(apply_add(x[:rows], wanted), wanted + wanted)
    assert not has_operator or gpu.calls > 5 + 5, "the operator was not what computed"


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 16, 17, 300])
def test_int8_on_a_gpu_is_int8_on_the_cpu(rows: int) -> None:
    """The device's products are exact, so that only the last rounding may differ."""
    weight, bias, x = noise(520, 264), noise(520, seed=1), noise(rows, 264, seed=2)
    wanted = Linear(weight, bias, quantization="int8").apply(x)
    found = Linear(weight.cuda(), bias.cuda(), quantization="int8").apply(x.cuda())
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 6, 8, 12, 16, 20, 32, 112])
def test_slopes_are_those_of_transformers(heads: int) -> None:
    """Bit by bit, for head counts that are powers of two and for others."""
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]
    assert alibi_slopes(heads).tolist() == theirs.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_decode_rows_attend_as_each_would_alone(seed: int) -> None:
    """Whatever the blocks' sizes and order, in every layer, and until one outgrows what it is padded to."""
    assert decode.decodes_at_once()
    rng = random.Random(seed)
    heads, head_dim, layers = 3, 8, 2
    arena, cache = Arena(4096), KVCache(layers, heads, head_dim, 4096, torch.float32)
    for layer in range(layers):
        cache.layers[layer].copy_(noise(*cache.layers[layer].shape, seed=10 * seed + layer))
    taken = [arena.take(rng.choice([30, 60, 100, 200, 400])) for _ in range(12)]
    blocks = [block for block in rng.sample(taken, 8) if block]
    lengths = [rng.randint(1, block.size) for block in blocks]
    slopes = alibi_slopes(heads)
    rows = decode.DecodeRows(cache, blocks, lengths, slopes)
    assert not rows.fits(blocks[1:], lengths[1:])
    assert not rows.fits(blocks[::-1], lengths[::-1])
    steps = 0
    while rows.fits(blocks, lengths) and all(map(int.__le__, lengths, (block.size for block in blocks))):
        rows.begin(torch.tensor(lengths) - 1)
        for layer in range(layers):
            qkv, out = noise(len(blocks), heads, 3, head_dim, seed=steps), torch.zeros(len(blocks) + 2, heads, head_dim)
            rows.attend(layer, qkv, out)
            expected = [_alone(cache, layer, *row, slopes) for row in zip(blocks, lengths, qkv, strict=True)]
            torch.testing.assert_close(out, torch.stack([*expected, *torch.zeros(2, heads, head_dim)]))
        lengths = [length + 1 for length in lengths]
        steps += 1
    assert steps > 0


@given(st.lists(st.integers(1, 40), min_size=1, max_size=9).map(sorted))
def test_no_other_cut_costs_less(lengths: list[int]) -> None:
    """Of all ways to cut rows into neighbouring groups, each padded to its longest."""
    lengths = [32 * length for length in lengths]

    def cost(groups: list[tuple[int, int]]) -> int:
        return sum(GROUP_COST + (last - first) * lengths[last - 1] for first, last in groups)

    found = group_rows(lengths)
    assert [row for first, last in found for row in range(first, last)] == [*range(len(lengths))]
    inner = range(1, len(lengths))
    for cuts in itertools.chain.from_iterable(itertools.combinations(inner, count) for count in range(len(lengths))):
        assert cost(found) <= cost(list(itertools.pairwise([0, *cuts, len(lengths)])))


@pytest.mark.parametrize("lacking", ["sampled_addmm", "wrong numbers", None])
def test_rows_decode_at_once_only_where_the_operators_are_right(
    lacking: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build of torch without them, or with others, attends row by row."""
    if lacking == "sampled_addmm":
        monkeypatch.delattr(torch.sparse, lacking)
    elif lacking:
        right = torch.embedding_bag
        monkeypatch.setattr(torch, "embedding_bag", lambda *a, **k: (2 * right(*a, **k)[0],))
    decode.decodes_at_once.cache_clear()
    assert decode.decodes_at_once() is (lacking is None)
    decode.decodes_at_once.cache_clear()


def _alone(cache: KVCache, layer: int, block: Block, length: int, qkv: Tensor, slopes: Tensor) -> Tensor:
    """Attention of one row, [heads, head_dim], written out."""
    keys, values = cache.read(layer, block, length)  # [heads, length, head_dim]
    scores = (keys @ qkv[:, 0, :, None])[..., 0] / qkv.shape[-1] ** 0.5
    scores += slopes[:, None] * (torch.arange(length) - (length - 1))
    return (scores.softmax(-1)[:, None] @ values)[:, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_infinite_key_that_is_masked_spoils_no_row(dtype: torch.dtype) -> None:
    """A query that it repels goes well, so that nobody clears what it leaves behind another sequence's end."""
    query, keys, values = (noise(1, size, 8, seed=size).to(dtype) for size in (2, 5, 7))
    values = values[:, :5]
    query[0, :, 3] = 1.0
    bias = bias_of(torch.ones(1), torch.arange(5), torch.tensor([2, 3])).transpose(0, 1)
    out, wanted = torch.empty_like(query), torch.empty_like(query)
    weigh(query, keys, values, bias, 0.5, wanted)
    keys[0, 4, 3] = torch.inf
    weigh(query, keys, values, bias, 0.5, out)
    assert torch.equal(out, wanted)
