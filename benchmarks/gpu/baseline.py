"""transformers' ``generate`` on the same device with the same weights: one sequence, and static batches of 16."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.device import synchronise
from benchmarks.gpu.parts import random_prompt
from benchmarks.static import run_static
from benchmarks.workload import Item
from workers.engine.checkpoint import BloomConfig

BATCH = 16
RUNS = 3


def one(model: Any, config: BloomConfig, device: str, context: int, steps: int) -> dict[str, Any]:
    """Seconds of a decode step of one sequence: a long generation's less a short one's, so that prefill cancels out.

    Both are the least of some runs: noise only adds, and would weigh a run's worth on the few steps between them.
    """
    prompt = random_prompt(config, context - steps // 2, seed=0)

    def took_s(tokens: int) -> float:
        return min(_timed(device, lambda: run_static(model, [Item(prompt, tokens)], 1)) for _ in range(RUNS))

    took_s(2)
    step_s = (took_s(2 + steps) - took_s(2)) / steps
    return {"context": context, "step_ms": round(1000 * step_s, 4), "tokens_per_s": round(1 / step_s, 1)}


def static(model: Any, items: list[Item], device: str, has_time: Callable[[], bool]) -> dict[str, Any]:
    """Batches of 16 in order of arrival, each to its longest member, as many as there is time for."""
    _timed(device, lambda: run_static(model, [Item(item.prompt, 2) for item in items[:BATCH]], BATCH))
    wall_s, done = 0.0, 0
    while done < len(items) and (done == 0 or has_time()):
        group = items[done : done + BATCH]
        wall_s += _timed(device, lambda group=group: run_static(model, group, BATCH))  # type: ignore[misc]
        done += len(group)
    tokens = sum(item.max_tokens for item in items[:done])
    return {"requests": done, "tokens": tokens, "wall_s": round(wall_s, 4), "tokens_per_s": round(tokens / wall_s, 1)}


@torch.inference_mode()
def _timed(device: str, call: Callable[[], object]) -> float:
    synchronise(device)
    started = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - started
