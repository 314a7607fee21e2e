"""Linear layers with weights in 8 bits, on any device: exact products of int8 matrices, scaled back.

A GPU's operator wants more than 16 rows and sizes that eight divides, so what it gets is padded; where it is missing or
wrong, products are summed in doubles.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Apply = Callable[[Tensor], Tensor]
AddTo = Callable[[Tensor, Tensor], Tensor]

GPU_ROWS = 32
"""Rows that a GPU's operator gets at least, and in multiples: it takes no 16 and fewer."""
GPU_SIZES = 8
"""Both sizes of a weight are padded to a multiple of this for a GPU."""
_TRIED_ROWS = (0, 1, 3, 16, 37)
_AT_ONCE = 1 << 24
"""Numbers that are turned into wider ones at once, so that a large head needs no several times its memory."""


def gelu(x: Tensor) -> Tensor:
    """GELU by tanh, as Bloom was trained with."""
    return functional.gelu(x, approximate="tanh")


def int8_linear(weight: Tensor, bias: Tensor | None, *, padded: bool | None = None) -> tuple[Apply, Apply, AddTo]:
    """``x @ weight.T + bias`` from 8-bit weights and inputs; plain, with GELU and with a residual.

    weight: [out, in].  padded: whether to feed the operator what a GPU's takes; by default on GPUs.
    """
    outs, ins = weight.shape
    align = weight.device.type != "cpu" if padded is None else padded
    size = GPU_SIZES if align else 1
    quantized, scale = _quantized_weight(weight)
    columns = functional.pad(quantized, (0, -ins % size, 0, -outs % size)).t()  # [in, out], of multiples of size
    column_scale = scale.t()  # [1, out]
    multiply = int_multiply(weight.device.type, align)

    def apply(x: Tensor) -> Tensor:
        rows, row_scale = quantized_rows(x)
        y = multiply(rows, columns)[:, :outs] * (row_scale * column_scale)
        return (y if bias is None else y + bias).to(x.dtype)

    return apply, lambda x: gelu(apply(x)), lambda x, residual: apply(x) + residual


def quantized_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Each row in 127ths of its largest number, int8, and the fp32 scale [rows, 1] that undoes it; NaN stays NaN."""
    rows = rows.float()
    scale = rows.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return torch.round(rows / scale).to(torch.int8), scale


@functools.cache
def int_multiply(device: str = "cpu", padded: bool = False) -> AddTo:
    """The exact product of int8 matrices [rows, in] and [in, out]: torch's private operator if it is right there.

    device: a type, as ``cuda``.  padded: rows are padded to what a GPU takes, and to the width of the columns.
    """
    multiply = _padded_multiply if padded else _int_mm
    generator = torch.Generator().manual_seed(0)
    columns = torch.randint(-127, 128, (40, 72), dtype=torch.int8, generator=generator).t().to(device)
    try:
        for count in _TRIED_ROWS:
            rows = torch.randint(-127, 128, (count, 72), dtype=torch.int8, generator=generator).to(device)
            if not torch.equal(multiply(rows, columns), _float_multiply(rows, columns)):
                return _float_multiply
    except (RuntimeError, AttributeError, NotImplementedError):  # this build of torch lacks it
        return _float_multiply
    return multiply


def _quantized_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """As ``quantized_rows``, some rows at a time."""
    pieces = [quantized_rows(piece) for piece in weight.tensor_split(_cuts(weight.shape[0], weight.shape[1]))]
    return torch.cat([small for small, _ in pieces]), torch.cat([scale for _, scale in pieces])


def _int_mm(rows: Tensor, columns: Tensor) -> Tensor:
    return torch._int_mm(rows, columns)


def _padded_multiply(rows: Tensor, columns: Tensor) -> Tensor:
    """The same with more rows, of zeros, and as wide as the columns are high."""
    count, width = rows.shape
    # A step that samples nothing has the head compute no row.
    extra = -count % GPU_ROWS if count else GPU_ROWS
    return _int_mm(functional.pad(rows, (0, columns.shape[0] - width, 0, extra)), columns)[:count]


def _float_multiply(rows: Tensor, columns: Tensor) -> Tensor:
    """Exact as well: sums of int8 products fit the 53 bits of a double."""
    wide = functional.pad(rows, (0, columns.shape[0] - rows.shape[1])).double()
    pieces = columns.tensor_split(_cuts(columns.shape[1], columns.shape[0]), dim=1)
    return torch.cat([(wide @ piece.double()).to(torch.int32) for piece in pieces], dim=1)


def _cuts(count: int, size: int) -> list[int]:
    """Where to cut so many vectors of a size, so that each piece is turned into wider numbers at once."""
    at_once = max(1, _AT_ONCE // size)
    return list(range(at_once, count, at_once))
