"""Keys and values in 8 bits: half of bfloat16's memory and reading, at the price of some exactness.

Each token's keys, and its values, have one fp32 scale per head, beside the pages: what one token stores never changes
what another one reads, so that texts depend on no neighbour and a sequence that is computed again finds the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
KV_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
"""What FARM_ENGINE__KV_DTYPE calls them."""


def quantize(rows: Tensor, kept: torch.dtype) -> tuple[Tensor, Tensor]:
    """Vectors of numbers in 8 bits, each scaled so that its largest number is the largest there is.

    rows: [..., head_dim].  Returns the same shape in ``kept``, and what undoes it, fp32 [..., 1].  NaN and infinity
    come back as NaN, so that they are noticed.
    """
    rows = rows.float()
    scale = rows.abs().amax(-1, keepdim=True).clamp(min=1e-30) / LARGEST[kept]
    scaled = rows / scale
    return (scaled.round() if kept is torch.int8 else scaled).to(kept), scale
