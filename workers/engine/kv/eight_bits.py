"""Paged keys and values in 8 bits: half of bfloat16's memory and reading, at the price of some exactness.

Each token's keys, and its values, have one fp32 scale per head, beside the pages: what one token stores never changes
what another one reads, so that texts depend on no neighbour and a sequence that is computed again finds the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.engine.kv.paged import PAGE
from workers.engine.kv.pages import PageBuffers

_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
KV_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
"""What FARM_ENGINE__KV_DTYPE calls them."""


class EightBitPages(PageBuffers):
    """The pages of one stage's layers, in int8 or in floats of 4 exponent and 3 mantissa bits."""

    def __init__(
        self,
        layers: int,
        heads: int,
        head_dim: int,
        kv_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        kept: torch.dtype,
    ) -> None:
        """Reserve the memory. dtype: what attention computes in.  kept: int8 or float8_e4m3fn."""
        # Kept as bytes: not every device can index 8-bit floats.
        super().__init__(layers, heads, head_dim, kv_tokens, torch.uint8, device)
        shape = (2, kv_tokens // PAGE, heads, PAGE, 1)
        self.scales = [torch.zeros(shape, device=device) for _ in range(layers)]
        self._dtype = dtype
        self._kept = kept

    def _tensors(self) -> list[Tensor]:
        return [*self.layers, *self.scales]

    def write(self, layer: int, page: Tensor, slot: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store new tokens; shapes as in ``PageBuffers.write``."""
        for half, rows in enumerate((keys, values)):
            small, scale = quantize(rows, self._kept)
            self.layers[layer][half][page, :, slot] = small.view(torch.uint8)
            self.scales[layer][half][page, :, slot] = scale

    def gather(self, layer: int, tables: Tensor) -> Tensor:
        """The pages of these tables as numbers to compute with; shapes as in ``PageBuffers.gather``."""
        small = self.layers[layer][:, tables].view(self._kept)
        return small.to(self._dtype).mul_(self.scales[layer][:, tables])


def quantize(rows: Tensor, kept: torch.dtype) -> tuple[Tensor, Tensor]:
    """Vectors of numbers in 8 bits, each scaled so that its largest number is the largest there is.

    rows: [..., head_dim].  Returns the same shape in ``kept``, and what undoes it, fp32 [..., 1].  NaN and infinity
    come back as NaN, so that they are noticed.
    """
    rows = rows.float()
    scale = rows.abs().amax(-1, keepdim=True).clamp(min=1e-30) / _LARGEST[kept]
    scaled = rows / scale
    return (scaled.round() if kept is torch.int8 else scaled).to(kept), scale
