"""The machine's own limits: bytes read per second and operations per second, and the least time a workload can take.

    python -m benchmarks.floor

All usable cores stream a buffer far larger than any cache, then multiply square matrices; the best of some tries
counts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.report import finish
from workers.engine.checkpoint import BloomConfig

STREAM_BYTES = 1 << 30
SIDE = 2048
TRIES = 7
FP32 = 4


@dataclass(frozen=True, slots=True)
class Peaks:
    """What the machine reaches at best, in fp32."""

    read_bytes_per_s: float
    operations_per_s: float


def measure() -> Peaks:
    """Read and multiply at full speed in this process."""
    stream = torch.ones(STREAM_BYTES // FP32)
    left, right = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    product = torch.empty(SIDE, SIDE)
    read_s = min(_best_s(stream.sum), _best_s(stream.max))
    return Peaks(STREAM_BYTES / read_s, 2 * SIDE**3 / _best_s(lambda: torch.mm(left, right, out=product)))


def measure_apart() -> Peaks:
    """The same in a process of its own, which is gone afterwards."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.floor"], stdout=subprocess.PIPE, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    return Peaks(figures["read_bytes_per_s"], figures["operations_per_s"])


def floor_s(config: BloomConfig, peaks: Peaks, steps: int, work: list[tuple[int, int]]) -> tuple[float, float]:
    """Seconds to read all weights once a step, and seconds to multiply all rows by them, in fp32.

    work: prompt tokens and generated tokens of each request. The workload can't take less than either time; keys and
    values are left out. Every token but a request's last goes through the blocks, every generated one through the head.
    """
    head = config.vocab * config.hidden
    blocks = config.layers * 12 * config.hidden**2
    rows = sum(prompt + generated - 1 for prompt, generated in work)
    operations = 2 * blocks * rows + 2 * head * sum(generated for _, generated in work)
    return steps * FP32 * (blocks + head) / peaks.read_bytes_per_s, operations / peaks.operations_per_s


def _best_s(call: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(TRIES):
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return best


def main() -> None:
    """Measure and print."""
    peaks = measure()
    rows = [
        ("memory, read", f"{peaks.read_bytes_per_s / 1e9:8.1f} GB/s"),
        ("fp32 matrix product", f"{peaks.operations_per_s / 1e9:8.1f} GFLOPS"),
    ]
    figures = {"read_bytes_per_s": peaks.read_bytes_per_s, "operations_per_s": peaks.operations_per_s}
    finish("floor", rows, {**figures, "threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
