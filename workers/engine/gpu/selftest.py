"""Which attention a device gets: Triton's kernels where they run and agree with torch, else torch.

A driver or a compiler that is not what the kernels were written for must cost speed, never right answers.
"""

from __future__ import annotations

import contextlib
import functools

import structlog
import torch
from torch import Tensor

from workers.engine.gpu.attention import Attention, Chunks, TorchAttention
from workers.engine.kernels.attention import alibi_slopes
from workers.engine.kv.paged import PAGE

log = structlog.get_logger(__name__)

LENGTHS = (1, PAGE, PAGE + 1, 300)
"""Of decode rows: a first token, a page's border, and more keys than one program takes."""
CHUNKS = ((0, 0, 70), (70, 37, 9))
"""First row, first position and rows of prompt chunks."""
_LIMITS = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 5e-3}
"""Largest difference of outputs that are means of standard normal numbers."""


@functools.cache
def best_attention(device: torch.device, heads: int, head_dim: int, dtype: torch.dtype) -> Attention:
    """The quickest attention that gives the right numbers for heads of this size; asked once per device."""
    try:
        # Here because Triton comes with torch's CUDA builds alone.
        from workers.engine.gpu.triton_attention import TritonAttention

        kernels = TritonAttention()
        # Triton launches on the current device, wherever its tensors lie.
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            found = mismatch(kernels, device, heads, head_dim, dtype)
    except Exception as error:  # Triton and the driver below it raise what they like, and torch serves all the same
        found = f"{type(error).__name__}: {str(error)[:200]}"
    if found is None:
        return kernels
    log.warning("triton_not_used", device=str(device), reason=found)
    return TorchAttention()


@torch.inference_mode()
def mismatch(attention: Attention, device: torch.device, heads: int, head_dim: int, dtype: torch.dtype) -> str | None:
    """Say what differs from torch in fp32, or None. What may not be read is NaN, and so are the outputs before."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    width = -(-max(LENGTHS) // PAGE)
    pages = torch.full((2, len(LENGTHS) * width + 1, heads, PAGE, head_dim), torch.nan, dtype=dtype)
    tables = (torch.randperm(len(LENGTHS) * width, generator=generator) + 1).int().view(len(LENGTHS), width)
    for table, length in zip(tables, LENGTHS, strict=True):
        for position in range(length - 1):
            pages[:, table[position // PAGE], :, position % PAGE] = normal(2, heads, head_dim)
    lengths, slopes = torch.tensor(LENGTHS, dtype=torch.int32), alibi_slopes(heads)
    for row, length in enumerate(LENGTHS):
        tables[row, -(-length // PAGE) :] = 0  # page 0 is all NaN
    qkv = normal(len(LENGTHS), heads, 3, head_dim)
    exact = pages.nan_to_num(0.0).float()
    wanted = torch.empty(len(LENGTHS), heads, head_dim)
    TorchAttention().decode(qkv.float(), exact, tables, lengths, slopes, wanted)
    here = pages.to(device)
    out = torch.full_like(wanted, torch.nan, dtype=dtype, device=device)
    slopes_here = slopes.to(device)
    attention.decode(qkv.to(device), here, tables.to(device), lengths.to(device), slopes_here, out)
    if found := _beyond("decode", out, wanted, dtype):
        return found
    page, slot = tables.long().gather(1, (lengths.long()[:, None] - 1) // PAGE)[:, 0], (lengths.long() - 1) % PAGE
    if not torch.equal(here.cpu()[:, page, :, slot], qkv[:, :, 1:].permute(0, 2, 1, 3)):
        return "decode does not store its keys and values"
    known = [*CHUNKS]
    mine = tables[-1:].expand(len(known), -1).contiguous()  # both read the longest row's pages
    qkv = normal(max(first + count for first, _, count in known), heads, 3, head_dim)
    wanted = torch.empty(len(qkv), heads, head_dim)
    TorchAttention().prefill(qkv.float(), exact, Chunks(mine, torch.tensor(known), known), slopes, wanted)
    out = torch.full_like(wanted, torch.nan, dtype=dtype, device=device)
    chunks = Chunks(mine.to(device), torch.tensor(known, dtype=torch.int32, device=device), known)
    attention.prefill(qkv.to(device), here, chunks, slopes_here, out)
    return _beyond("prefill", out, wanted, dtype)


def _beyond(what: str, got: Tensor, wanted: Tensor, dtype: torch.dtype) -> str | None:
    worst = float((got.cpu().float() - wanted).abs().max())
    limit = _LIMITS[dtype]
    return None if worst < limit else f"{what} differs from torch's by {worst:.1e}, more than {limit:.0e}"
