"""What a device keeps free beside weights, keys and values: a flat reserve, and room for logits where the head is.

Knows shapes and who holds which copy of the logits at the same time (``gpu.shard``, ``gpu.runner``, ``sampler``,
``draw``); holds no tensor itself.
"""

from __future__ import annotations

from workers.engine.module_bytes import ELEMENT_BYTES

RESERVE_BYTES = 1 << 30
"""Kept free on every device for what grows with neither weights nor slots: CUDA's context and libraries' workspaces,
activations of a prefill chunk, fragmentation."""

RESERVE_SHARE = 8
"""A device under 8 GiB keeps this part of its memory free instead: an eighth."""

FP32, FP64 = 4, 8
HELD = {
    "output of decode steps, which a graph writes to": FP32,
    "logits of a step with prompt chunks": FP32,
}
"""Bytes, for each row and token of the vocabulary, of the logits that a GPU's steps come in."""
SAMPLING = {
    "log probabilities, where all rows ask for them": FP32,
    "rows that are drawn, over their temperature": FP32,
    "those of them that are drawn from whole": FP32,
    "their weights": FP32,
    "the same in doubles, while they are summed": FP64,
}
"""And of the copies that ``sampler.begin`` holds at its peak, for rows that ask for everything.

Nuclei are looked for in 32 rows at once; with fewer than 52 slots that takes up to 160 bytes for each token of the
vocabulary more, some 40 MB, which the flat reserve holds.
"""


def reserved(total: int, reserve: int | None) -> int:
    """Bytes kept free on a device of so many, whatever it holds."""
    return min(RESERVE_BYTES, total // RESERVE_SHARE) if reserve is None else reserve


def with_reserve(need: int, reserve: int | None) -> int:
    """Bytes of the device that has ``need`` left beside its reserve."""
    if reserve is not None:
        return need + reserve
    return min(need + RESERVE_BYTES, -(-need * RESERVE_SHARE // (RESERVE_SHARE - 1)))


def logits_bytes(vocab: int, slots: int, dtype: str, quantization: str | None = None) -> int:
    """Bytes that the device with the head needs for a step in which every slot gets a token.

    dtype, quantization: as in ``planner.plan_shards``.
    """
    # What a graph computed with stays its own, so the head counts beside all that comes after it.
    a_row = head_bytes(dtype, quantization) + sum(HELD.values()) + sum(SAMPLING.values())
    return a_row * vocab * slots


def head_bytes(dtype: str, quantization: str | None = None) -> int:
    """Bytes that a row's product with the head takes for each token of the vocabulary, until it is fp32."""
    if quantization is not None:
        return 4 * FP32  # the product in int32, then in fp32, the scales that undo it, and what comes of both
    return FP32 if dtype == "float32" else ELEMENT_BYTES[dtype] + FP32


def gathered_bytes(vocab: int, slots: int, rank: int, ranks: int) -> int:
    """Bytes that a rank needs for its part of the logits, and rank 0 for all parts, apart and side by side."""
    own = 2 * FP32 * -(-vocab // ranks)  # as computed, and in fp32 or padded
    return (own + (0 if rank else 2 * FP32 * vocab)) * slots
