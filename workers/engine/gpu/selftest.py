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
from workers.engine.kv.pages import PageLayer

log = structlog.get_logger(__name__)

LENGTHS = (1, PAGE, PAGE + 1, 300)
"""Of decode rows: a first token, a page's border, and more keys than one program takes."""
CHUNKS = ((0, 0, 70), (70, 37, 9))
"""First row, first position and rows of prompt chunks."""
_LIMITS = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 5e-3}
"""Largest difference of outputs that are means of standard normal numbers."""


@functools.cache
def best_attention(
    device: torch.device, heads: int, head_dim: int, dtype: torch.dtype, kept: torch.dtype | None = None
) -> Attention:
    """The quickest attention that gives the right numbers for heads of this size; asked once per device.

    kept: what keys and values are kept in, if not in ``dtype``.
    """
    try:
        # Here because Triton comes with torch's CUDA builds alone.
        from workers.engine.gpu.triton_attention import TritonAttention

        is_cuda = device.type == "cuda"
        kernels = TritonAttention(converts_fp8=is_cuda and torch.cuda.get_device_capability(device) >= (8, 9))
        # Triton launches on the current device, wherever its tensors lie.
        with torch.cuda.device(device) if is_cuda else contextlib.nullcontext():
            found = mismatch(kernels, device, heads, head_dim, dtype, kept)
    except Exception as error:  # Triton and the driver below it raise what they like, and torch serves all the same
        found = f"{type(error).__name__}: {str(error)[:200]}"
    if found is None:
        return kernels
    log.warning("triton_not_used", device=str(device), kv_dtype=str(kept or dtype), reason=found)
    return TorchAttention()


@torch.inference_mode()
def mismatch(
    attention: Attention,
    device: torch.device,
    heads: int,
    head_dim: int,
    dtype: torch.dtype,
    kept: torch.dtype | None = None,
) -> str | None:
    """Say what differs from torch in fp32, or None. What may not be read is NaN, and so are the outputs before."""
    trial = _Trial(attention, device, heads, head_dim, dtype, kept)
    return trial.decode() or trial.prefill()


class _Trial:
    """Texts of LENGTHS, their last tokens still to come: in pages for torch, and in pages for who is on trial."""

    def __init__(
        self,
        attention: Attention,
        device: torch.device,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        kept: torch.dtype | None,
    ) -> None:
        self.attention, self.device, self.dtype = attention, device, dtype
        self.shape, self.slopes = (heads, head_dim), alibi_slopes(heads)
        self.generator = torch.Generator().manual_seed(0)
        width = -(-max(LENGTHS) // PAGE)
        order = torch.randperm(len(LENGTHS) * width, generator=self.generator) + 1
        self.tables = order.int().view(len(LENGTHS), width)
        self.exact = PageLayer.of(len(order) + 1, heads, head_dim, torch.float32, torch.device("cpu"), kept)
        self.here = PageLayer.of(len(order) + 1, heads, head_dim, dtype, device, kept)
        self.here.tensors()[-1].fill_(torch.nan)  # the scales, where there are some
        for table, length in zip(self.tables, LENGTHS, strict=True):
            page, slot = _places(table, torch.arange(length - 1))
            kv = self.normal(length - 1)[:, :, 1:]
            self.exact.write(page, slot, kv.float())
            self.here.write(page.to(device), slot.to(device), kv.to(device))
            table[-(-length // PAGE) :] = 0  # a page of no text

    def normal(self, rows: int) -> Tensor:
        """Some queries, keys and values: [rows, heads, 3, head_dim]."""
        heads, head_dim = self.shape
        return torch.randn(rows, heads, 3, head_dim, generator=self.generator).to(self.dtype)

    def decode(self) -> str | None:
        """Each text's last token."""
        lengths, qkv = torch.tensor(LENGTHS, dtype=torch.int32), self.normal(len(LENGTHS))
        wanted = torch.empty(len(LENGTHS), *self.shape)
        TorchAttention().decode(qkv.float(), self.exact, self.tables, lengths, self.slopes, wanted)
        out = torch.full_like(wanted, torch.nan, dtype=self.dtype, device=self.device)
        there = [tensor.to(self.device) for tensor in (self.tables, lengths, self.slopes)]
        self.attention.decode(qkv.to(self.device), self.here, there[0], there[1], there[2], out)
        pairs = zip(self.tables, LENGTHS, strict=True)
        places = [_places(table, torch.tensor([length - 1])) for table, length in pairs]
        return self._beyond("decode", out, wanted) or self._not_stored("decode", places)

    def prefill(self) -> str | None:
        """CHUNKS, all of the longest text, whose first tokens are written anew."""
        known, device = [*CHUNKS], self.device
        rows = max(first + count for first, _, count in known)
        qkv, places = self.normal(rows), _places(self.tables[-1], torch.arange(rows))
        self.exact.write(*places, qkv[:, :, 1:].float())
        self.attention.store(qkv.to(device), self.here, places[0].to(device), places[1].to(device))
        wanted = torch.empty(rows, *self.shape)
        spans = torch.tensor(known, dtype=torch.int32)
        tables = self.tables[-1:].expand(len(known), -1).contiguous()
        TorchAttention().prefill(qkv.float(), self.exact, Chunks(tables, spans, known), self.slopes, wanted)
        out = torch.full_like(wanted, torch.nan, dtype=self.dtype, device=device)
        chunks = Chunks(tables.to(device), spans.to(device), known)
        self.attention.prefill(qkv.to(device), self.here, chunks, self.slopes.to(device), out)
        return self._not_stored("prefill", [places]) or self._beyond("prefill", out, wanted)

    def _beyond(self, what: str, got: Tensor, wanted: Tensor) -> str | None:
        worst, limit = float((got.cpu().float() - wanted).abs().max()), _LIMITS[self.dtype]
        return None if worst < limit else f"{what} differs from torch's by {worst:.1e}, more than {limit:.0e}"

    def _not_stored(self, what: str, places: list[tuple[Tensor, Tensor]]) -> str | None:
        """Both layers must hold the same there, to the last bit."""
        for got, wanted in zip(self.here.tensors(), self.exact.tensors(), strict=True):
            for page, slot in places:
                if not torch.equal(got.cpu().float()[:, page, :, slot], wanted.float()[:, page, :, slot]):
                    return f"{what} does not store its keys and values"
        return None


def _places(table: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Page, and place within it, of these positions of a text: int64 [positions] each."""
    return table[positions // PAGE].long(), positions % PAGE
