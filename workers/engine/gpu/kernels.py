"""Triton kernels over pages: attention with ALiBi of decode rows and of prompt chunks.

Per layer one buffer of pages, [2, pages, heads, PAGE, head_dim], keys first. A row's keys lie in the pages of its
table; what lies in no table, or behind a row's length, is never read. Scores, softmax and sums are fp32, and the bias
is slope * (key - query) in fp32. A row's result depends on no other row. Pages of 8 bits have scales, [2, pages, heads,
PAGE, 1]: keys and values are then attended as they are kept, a row's newest too.
Sources: FlashAttention, Dao et al. 2022; ALiBi, Press et al. 2022, section 3.
"""

from __future__ import annotations

import triton
import triton.language as tl

from workers.engine.gpu.eight_bit_kernels import quantized, widened


# Numbers that change from step to step: Triton would compile a kernel for those that 16 divides, and one for 1.
@triton.jit(do_not_specialize=["table_stride", "length_stride"])
def decode_kernel(
    qkv,  # [rows, heads, 3, head_dim]
    pages,  # [2, pages, heads, PAGE, head_dim]
    scales,  # fp32 [2, pages, heads, PAGE, 1], or None
    tables,  # int32 [rows, >= the pages of a row]
    lengths,  # int32 [rows], the new token included
    slopes,  # fp32 [heads]
    parts,  # fp32 [rows, heads, splits, head_dim], written
    weights,  # fp32 [rows, heads, splits, 2], written: the highest score of a split and its sum
    scale,
    table_stride,
    length_stride,
    values_at,  # from a key to its value, in numbers
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,  # HEAD_DIM rounded up to a power of two
    PAGE: tl.constexpr,
    SPLIT: tl.constexpr,  # keys of a program at the most
    BLOCK: tl.constexpr,  # keys at a time
    CONVERTS_FP8: tl.constexpr,  # the device has an instruction for it
):
    """Store a decode row's new key and value, and attend one split of its keys. Grid: rows, heads, splits."""
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    last = tl.load(lengths + row * length_stride) - 1
    start = split * SPLIT
    place = (row * HEADS + head) * tl.num_programs(2) + split
    if start > last:
        tl.store(weights + place * 2, float("-inf"))
        tl.store(weights + place * 2 + 1, 0.0)
        return
    dims = tl.arange(0, WIDTH)
    is_dim = dims < HEAD_DIM
    mine = qkv + (row * HEADS + head).to(tl.int64) * 3 * HEAD_DIM + dims
    query = tl.load(mine, mask=is_dim, other=0.0).to(tl.float32) * scale
    slope = tl.load(slopes + head)
    highest = float("-inf")
    total = 0.0
    sums = tl.zeros([WIDTH], dtype=tl.float32)
    if last < start + SPLIT:
        # The new token is attended from registers: no program waits for another's store.
        key = tl.load(mine + HEAD_DIM, mask=is_dim, other=0.0)
        value = tl.load(mine + 2 * HEAD_DIM, mask=is_dim, other=0.0)
        page = tl.load(tables + row * table_stride + last // PAGE).to(tl.int64)
        token = (page * HEADS + head) * PAGE + last % PAGE
        key_scale, value_scale = 1.0, 1.0
        if scales is not None:
            key, key_scale = quantized(key, pages.dtype.element_ty == tl.int8)
            value, value_scale = quantized(value, pages.dtype.element_ty == tl.int8)
            tl.store(scales + token, key_scale)
            tl.store(scales + token + values_at // HEAD_DIM, value_scale)
        target = pages + token * HEAD_DIM + dims
        tl.store(target, key, mask=is_dim)
        tl.store(target + values_at, value, mask=is_dim)
        highest = tl.sum(query * widened(key, CONVERTS_FP8)) * key_scale
        total = 1.0
        sums = widened(value, CONVERTS_FP8) * value_scale
    end = tl.minimum(start + SPLIT, last)
    for first in range(start, end, BLOCK):
        keys = first + tl.arange(0, BLOCK)
        is_key = keys < end
        page = tl.load(tables + row * table_stride + keys // PAGE, mask=is_key, other=0).to(tl.int64)
        tokens = (page * HEADS + head) * PAGE + keys % PAGE  # [BLOCK]
        source = pages + (tokens * HEAD_DIM)[:, None] + dims[None, :]
        is_number = is_key[:, None] & is_dim[None, :]
        key = widened(tl.load(source, mask=is_number, other=0), CONVERTS_FP8)  # [BLOCK, WIDTH]
        scores = tl.sum(query[None, :] * key, 1)
        if scales is not None:
            scores *= tl.load(scales + tokens, mask=is_key, other=0.0)
        scores += slope * (keys - last).to(tl.float32)
        scores = tl.where(is_key, scores, float("-inf"))
        above = tl.maximum(highest, tl.max(scores, 0))
        shrink = tl.exp(highest - above)
        parts_of = tl.exp(scores - above)  # [BLOCK]
        total = total * shrink + tl.sum(parts_of, 0)
        if scales is not None:
            parts_of *= tl.load(scales + tokens + values_at // HEAD_DIM, mask=is_key, other=0.0)
        value = widened(tl.load(source + values_at, mask=is_number, other=0), CONVERTS_FP8)
        sums = sums * shrink + tl.sum(parts_of[:, None] * value, 0)
        highest = above
    tl.store(parts + place * HEAD_DIM + dims, sums, mask=is_dim)
    tl.store(weights + place * 2, highest)
    tl.store(weights + place * 2 + 1, total)


@triton.jit(do_not_specialize=["splits"])
def combine_kernel(
    parts,  # fp32 [rows, heads, splits, head_dim]
    weights,  # fp32 [rows, heads, splits, 2]
    out,  # [rows, heads, head_dim], written
    splits,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,  # splits rounded up to a power of two
):
    """Join the splits of a row's head. Grid: rows * heads."""
    place = tl.program_id(0)
    dims = tl.arange(0, WIDTH)
    each = tl.arange(0, SPLITS)
    is_split = each < splits
    where = (place * splits + each) * 2
    highest = tl.load(weights + where, mask=is_split, other=float("-inf"))
    total = tl.load(weights + where + 1, mask=is_split, other=0.0)
    shrink = tl.exp(highest - tl.max(highest, 0))  # [SPLITS], 0 for a split without keys
    # A split without keys has written no part.
    is_number = (is_split & (total > 0.0))[:, None] & (dims < HEAD_DIM)[None, :]
    at = (place * splits + each).to(tl.int64) * HEAD_DIM
    part = tl.load(parts + at[:, None] + dims[None, :], mask=is_number, other=0.0)
    sums = tl.sum(part * shrink[:, None], 0) / tl.sum(total * shrink, 0)
    tl.store(out + place * HEAD_DIM + dims, sums.to(out.dtype.element_ty), mask=dims < HEAD_DIM)


@triton.jit(do_not_specialize=["table_stride"])
def prefill_kernel(
    qkv,  # [tokens, heads, 3, head_dim]
    pages,  # [2, pages, heads, PAGE, head_dim], the chunks' own keys and values among them
    scales,  # fp32 [2, pages, heads, PAGE, 1], or None
    tables,  # int32 [chunks, >= the pages of a chunk]
    spans,  # int32 [chunks, 3]: first row, first position, rows
    slopes,  # fp32 [heads]
    out,  # [tokens, heads, head_dim], written
    scale,
    table_stride,
    values_at,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    PAGE: tl.constexpr,
    QUERIES: tl.constexpr,  # rows of a program
    BLOCK: tl.constexpr,  # keys at a time
    CONVERTS_FP8: tl.constexpr,  # the device has an instruction for it
):
    """Attend some rows of a prompt chunk. Grid: tiles of QUERIES rows, heads, chunks."""
    tile, head, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_row = tl.load(spans + chunk * 3)
    start = tl.load(spans + chunk * 3 + 1)
    count = tl.load(spans + chunk * 3 + 2)
    if tile * QUERIES >= count:
        return
    dims = tl.arange(0, WIDTH)
    is_dim = dims < HEAD_DIM
    mine = tile * QUERIES + tl.arange(0, QUERIES)
    is_row = mine < count
    is_query = is_row[:, None] & is_dim[None, :]
    rows = ((first_row + mine).to(tl.int64) * HEADS + head)[:, None]
    query = tl.load(qkv + rows * 3 * HEAD_DIM + dims[None, :], mask=is_query, other=0.0)  # [QUERIES, WIDTH]
    slope = tl.load(slopes + head)
    positions = start + mine
    highest = tl.full([QUERIES], float("-inf"), dtype=tl.float32)
    total = tl.zeros([QUERIES], dtype=tl.float32)
    sums = tl.zeros([QUERIES, WIDTH], dtype=tl.float32)
    end = start + tl.minimum(count, (tile + 1) * QUERIES)
    for first in range(0, end, BLOCK):
        keys = first + tl.arange(0, BLOCK)
        is_key = keys < end
        page = tl.load(tables + chunk * table_stride + keys // PAGE, mask=is_key, other=0).to(tl.int64)
        tokens = (page * HEADS + head) * PAGE + keys % PAGE  # [BLOCK]
        source = pages + (tokens * HEAD_DIM)[:, None] + dims[None, :]
        is_number = is_key[:, None] & is_dim[None, :]
        key = tl.load(source, mask=is_number, other=0)  # [BLOCK, WIDTH]
        if scales is not None:
            key = widened(key, CONVERTS_FP8).to(query.dtype)  # exact in any dtype; scaled when summed in fp32
        distance = keys[None, :] - positions[:, None]  # [QUERIES, BLOCK]
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        if scales is not None:
            scores *= tl.load(scales + tokens, mask=is_key, other=0.0)[None, :]
        scores += slope * distance.to(tl.float32)
        scores = tl.where(distance <= 0, scores, float("-inf"))
        above = tl.maximum(highest, tl.max(scores, 1))  # finite: key 0 lies before every query
        shrink = tl.exp(highest - above)
        parts = tl.exp(scores - above[:, None])
        value = tl.load(source + values_at, mask=is_number, other=0)
        if scales is not None:
            value_scale = tl.load(scales + tokens + values_at // HEAD_DIM, mask=is_key, other=0.0)
            value = (widened(value, CONVERTS_FP8) * value_scale[:, None]).to(query.dtype)
        sums = sums * shrink[:, None] + tl.dot(parts.to(value.dtype), value, input_precision="ieee")
        total = total * shrink + tl.sum(parts, 1)
        highest = above
    sums = sums / total[:, None]
    tl.store(out + rows * HEAD_DIM + dims[None, :], sums.to(out.dtype.element_ty), mask=is_query)
