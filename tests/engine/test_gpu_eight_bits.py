"""Keys and values in 8 bits on the GPU's path: Triton's kernels round and read them as torch does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.gpu import DEVICE, triton_attention
from tests.engine.test_gpu_kernels import FP8, INT8, on_device, same
from workers.engine.gpu.attention import Attention, Chunks
from workers.engine.kv.eight_bits import LARGEST
from workers.engine.kv.paged import PAGE
from workers.engine.kv.pages import PageLayer

both = pytest.mark.parametrize("kept", [INT8, FP8])


def _borders(kept: torch.dtype) -> Tensor:
    """Every number that there is in 8 bits, and those in the middle of two, with either sign: [numbers]."""
    numbers = torch.arange(256, dtype=torch.uint8).view(kept).float()
    found = numbers[numbers.isfinite() & (numbers.abs() <= LARGEST[kept])].sort().values
    return torch.cat([found, (found[1:] + found[:-1]) / 2])


def _layer(pages: int, heads: int, head_dim: int, kept: torch.dtype) -> PageLayer:
    """A layer that is all poison."""
    layer = PageLayer.of(pages, heads, head_dim, torch.float32, torch.device("cpu"), kept)
    assert layer.scales is not None
    layer.scales.fill_(math.nan)
    return layer


def _store(attention: Attention, layer: PageLayer, kv: Tensor, page: Tensor, slot: Tensor) -> PageLayer:
    """What the attention makes of a layer when it stores these tokens. kv: [tokens, heads, 2, head_dim]."""
    here = on_device(layer)
    qkv = torch.cat([torch.full_like(kv[:, :, :1], math.nan), kv], 2).contiguous()
    attention.store(qkv.to(DEVICE), here, page.to(DEVICE), slot.to(DEVICE))
    return here


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_prompts_are_stored_as_torch_stores_them(kept: torch.dtype, dtype: torch.dtype) -> None:
    """The same bytes and scales, from the least numbers to the largest, and nothing but these tokens' is written."""
    generator = torch.Generator().manual_seed(0)
    tokens, heads, head_dim = 21, 3, 80
    kv = torch.randn(tokens, heads, 2, head_dim, generator=generator)
    kv *= 2.0 ** torch.randint(-14, 4, kv.shape, generator=generator)
    kv[3], kv[4, 1, 0] = 0.0, -0.0
    if dtype is torch.float32:
        kv[5] *= 1e-37
        kv[6] *= 1e33
    layer = _layer(4, heads, head_dim, kept)
    page, slot = torch.arange(tokens) // 7 + 1, torch.arange(tokens) % 7 + PAGE - 7
    here = _store(triton_attention(), layer, kv.to(dtype), page, slot)
    layer.write(page, slot, kv.to(dtype))
    assert same(here, layer)


@both
def test_ties_are_rounded_as_torch_rounds_them(kept: torch.dtype) -> None:
    """Every number of 8 bits comes back as itself, and what lies in the middle of two goes to the even one."""
    borders = _borders(kept)
    kv = torch.zeros(1, 1, 2, 512)
    kv[0, 0, :, : len(borders)] = borders
    layer = _layer(1, 1, 512, kept)
    place = torch.zeros(1, dtype=torch.int64)
    here = _store(triton_attention(), layer, kv, place, place)
    layer.write(place, place, kv)
    assert layer.scales is not None
    assert layer.scales[0, 0, 0, 0] == 1.0, "the numbers were scaled, so nothing is a tie"
    assert same(here, layer)


@both
@pytest.mark.parametrize("converts_fp8", [False, True])
def test_every_byte_is_read_as_torch_reads_it(kept: torch.dtype, converts_fp8: bool) -> None:
    """By a prompt and by a decode row, with the device's instructions and without them."""
    attention = triton_attention(converts_fp8=converts_fp8)
    layer = PageLayer.of(1, 1, 256, torch.float32, torch.device("cpu"), kept)
    every = torch.arange(256, dtype=torch.uint8)
    every[every.view(kept).float().isnan()] = 1
    assert layer.scales is not None
    layer.numbers[0, 0, 0, 0] = 64  # the key
    layer.numbers[1, 0, 0, 0] = every.view(layer.numbers.dtype)
    layer.scales[0, 0, 0, 0], layer.scales[1, 0, 0, 0] = 1.0, 0.375
    wanted = every.view(kept).float() * 0.375
    slopes = torch.zeros(1, device=DEVICE)
    table = torch.zeros(1, 1, dtype=torch.int32, device=DEVICE)

    out = torch.empty(1, 1, 256, device=DEVICE)
    span = torch.tensor([[0, 0, 1]], dtype=torch.int32, device=DEVICE)
    query = torch.ones(1, 1, 3, 256, device=DEVICE)
    attention.prefill(query, on_device(layer), Chunks(table, span, [(0, 0, 1)]), slopes, out)
    assert torch.equal(out[0, 0].cpu(), wanted)

    # A second key of zeros has no weight beside the first one.
    query[:, :, 1:] = 0.0
    query[:, :, 0] = 10.0
    lengths = torch.tensor([2], dtype=torch.int32, device=DEVICE)
    attention.decode(query, on_device(layer), table, lengths, slopes, out)
    assert torch.equal(out[0, 0].cpu(), wanted)


@both
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_noticed(kept: torch.dtype, wrong: float) -> None:
    """A row that holds one is attended as NaN, at once and by those after it, and no other row or head is."""
    attention = triton_attention()
    kv = torch.ones(2, 2, 2, 16)
    kv[1, 0, 1, 3] = wrong
    place = torch.tensor([0, 1]), torch.tensor([5, 5])
    here = _store(attention, _layer(2, 2, 16, kept), kv, *place)
    found = here.gather(torch.tensor([[0, 1]], device=DEVICE), torch.float32).cpu()[:, 0, :, :, 5]
    assert found[1, 1, 0].isnan().all()  # [2, pages, heads, head_dim]
    found[1, 1, 0] = 1.0
    assert torch.allclose(found, torch.ones(()))

    qkv = torch.cat([torch.ones(2, 2, 1, 16), kv], 2).to(DEVICE)
    out = torch.zeros(2, 2, 16, device=DEVICE)
    args: list[Any] = [torch.tensor([[0], [1]], dtype=torch.int32), torch.ones(2, dtype=torch.int32), torch.ones(2)]
    attention.decode(qkv, on_device(_layer(2, 2, 16, kept)), *(arg.to(DEVICE) for arg in args), out)
    assert out[1, 0].isnan().all()
    assert torch.allclose(out[0].cpu(), torch.ones(()))
    assert torch.allclose(out[1, 1].cpu(), torch.ones(()))
