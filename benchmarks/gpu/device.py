"""The device that is measured: what it is called, its own limits, and why it can't be used."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from workers.engine.checkpoint import BloomConfig
from workers.engine.devices import gpu_trouble
from workers.engine.module_bytes import ELEMENT_BYTES, layer_token_bytes

_READ_BYTES = {"cuda": 4 << 30, "cpu": 256 << 20}
_SIDE = {"cuda": 8192, "cpu": 1024}
_TRIES = 7


@dataclass(frozen=True, slots=True)
class Floors:
    """What the device reaches at best: bytes that it reads in a second, operations of a matrix product."""

    read_bytes_per_s: float
    operations_per_s: float


def missing(device: str) -> str | None:
    """In one line, what is missing for this device to be measured; None if nothing is."""
    if device == "cpu":
        return None
    count = torch.cuda.device_count()
    if count and torch.device(device).index in range(count) and gpu_trouble() is None:
        return None
    found = gpu_trouble() or f"this machine has {count} GPUs"
    return f"{device} can't be measured: {found}; --device cpu --model small shows that the benchmark runs"


def about(device: str) -> dict[str, Any]:
    """The device as a record names it."""
    if device == "cpu":
        return {"kind": "cpu", "name": "CPU", "bytes": None, "cuda": None}
    found = torch.cuda.get_device_properties(device)
    return {"kind": "cuda", "name": found.name, "bytes": found.total_memory, "cuda": torch.version.cuda}


def measure_floors(device: str, dtype: torch.dtype) -> dict[str, float]:
    """Read a buffer far larger than any cache, then multiply square matrices; the best of some tries counts.

    What reads is a sum or a maximum over the buffer, which writes next to nothing, as a decode step does.
    """
    kind = torch.device(device).type
    size = _READ_BYTES[kind]
    if kind == "cuda":
        size = min(size, torch.cuda.mem_get_info(device)[0] // 4)
    stream = torch.ones(size // 4, dtype=torch.float32, device=device)
    read_s = min(_best_s(device, stream.sum), _best_s(device, stream.max))
    side = _SIDE[kind]
    left, right = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    gemm_s = _best_s(device, lambda: left @ right)
    return asdict(Floors(stream.nbytes / read_s, 2 * side**3 / gemm_s))


def step_bytes(config: BloomConfig, dtype: str, kv_dtype: str, rows: int, context: float) -> float:
    """Bytes that one decode step can't help reading: all weights but the embedding's, and its rows' keys and values.

    kv_dtype: as in FARM_ENGINE__KV_DTYPE.  context: tokens of a row, on average.  The head is the embedding's
    matrix and is read whole.
    """
    weights = config.layers * (12 * config.hidden**2 + 13 * config.hidden) + config.vocab * config.hidden
    token_bytes = config.layers * layer_token_bytes(config, dtype, kv_dtype)
    return ELEMENT_BYTES[dtype] * weights + rows * context * token_bytes


def prefill_operations(config: BloomConfig, tokens: int) -> float:
    """Operations of multiplying so many rows by all blocks' weights; attention and the head are left out."""
    return 2.0 * tokens * config.layers * 12 * config.hidden**2


def synchronise(device: str) -> None:
    """Return once the device has done all that it was given."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def _best_s(device: str, call: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(_TRIES):
        synchronise(device)
        started = time.perf_counter()
        call()
        synchronise(device)
        best = min(best, time.perf_counter() - started)
    return best
