"""Keys and values in 8 bits, in Triton: the same bytes and scales as ``kv.eight_bits.quantize`` gives.

int8 is kept as such. Floats of 4 exponent and 3 mantissa bits (e4m3) are kept as uint8, and are made, and where the
device can't convert them read, by their bits: so they need no particular GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LEAST = tl.constexpr(0x0DA24260)  # the bits of 1e-30
_INFINITY = tl.constexpr(0x7F800000)
_MAGNITUDE = tl.constexpr(0x7FFFFFFF)
_ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2^23: what is added to it loses its fraction, to the nearest even number


@triton.jit
def quantized(row, IS_INT8: tl.constexpr):
    """A vector in 8 bits. row: [width], 0 where it is padded.  Returns [width], and what undoes it, fp32.

    The scale of a vector with NaN or infinity is NaN.
    """
    row = row.to(tl.float32)
    # Bits rise with the magnitude, and NaN's are above all: no maximum of floats is needed that keeps NaN.
    highest = tl.max(row.to(tl.int32, bitcast=True) & _MAGNITUDE, 0)
    is_finite = highest < _INFINITY
    row = tl.where(is_finite, row, 0.0)
    largest = tl.where(is_finite, tl.maximum(highest, _LEAST), _LEAST).to(tl.float32, bitcast=True)
    scale = tl.div_rn(largest, 127.0 if IS_INT8 else 448.0)
    scaled = tl.div_rn(row, scale)
    if IS_INT8:
        kept = ((scaled + _ROUNDER) - _ROUNDER).to(tl.int8)
    else:
        bits = scaled.to(tl.int32, bitcast=True)
        magnitude = bits & _MAGNITUDE
        # To the nearest of 3 mantissa bits, ties to even; the exponent is counted from 7 instead of 127.
        normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
        # Below 2^-6 there are steps of 2^-9.
        small = ((tl.abs(scaled) * 512.0 + _ROUNDER) - _ROUNDER).to(tl.int32)
        kept = (((bits >> 24) & 0x80) | tl.where(magnitude < 0x3C800000, small, normal)).to(tl.uint8)
    return kept, tl.where(is_finite, scale, float("nan"))


@triton.jit
def widened(kept, CONVERTS_FP8: tl.constexpr):
    """What was kept, as fp32, before its scale: uint8 is e4m3, anything else a number. It loses nothing."""
    if kept.dtype == tl.uint8:
        if CONVERTS_FP8:
            wide = kept.to(tl.float8e4nv, bitcast=True).to(tl.float32)
        else:
            bits = kept.to(tl.uint16)
            # A float16 with the same sign, exponent and mantissa is 2^8 too small, as its exponent is counted from 15.
            half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
            wide = half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    else:
        wide = kept.to(tl.float32)
    return wide


@triton.jit
def store_kernel(
    qkv,  # [rows, heads, 3, head_dim]
    pages,  # int8 or uint8 [2, pages, heads, PAGE, head_dim], written
    scales,  # fp32 [2, pages, heads, PAGE, 1], written
    page_of,  # int64 [rows]
    slot_of,  # int64 [rows]
    values_at,  # from a key to its value, in numbers
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,  # HEAD_DIM rounded up to a power of two
    PAGE: tl.constexpr,
):
    """Store a row's key or value of one head. Grid: rows, heads, 2."""
    row, head, half = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    dims = tl.arange(0, WIDTH)
    is_dim = dims < HEAD_DIM
    mine = qkv + ((row * HEADS + head).to(tl.int64) * 3 + 1 + half) * HEAD_DIM + dims
    kept, scale = quantized(tl.load(mine, mask=is_dim, other=0.0), pages.dtype.element_ty == tl.int8)
    token = (tl.load(page_of + row) * HEADS + head) * PAGE + tl.load(slot_of + row) + half * (values_at // HEAD_DIM)
    tl.store(pages + token * HEAD_DIM + dims, kept, mask=is_dim)
    tl.store(scales + token, scale)
