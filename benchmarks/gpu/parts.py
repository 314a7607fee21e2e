"""What is measured of the engine alone: decode at fixed batch sizes, prefill, and a heavy-tailed workload."""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

from benchmarks.byte_bpe import FIRST_BYTE
from benchmarks.gpu.device import prefill_operations, step_bytes
from benchmarks.workload import Item
from farm.errors import FarmError
from workers.engine.bloom import Bloom
from workers.engine.checkpoint import BloomConfig
from workers.engine.engine import Engine
from workers.engine.protocol import Add, Emitted, Event, Failed, SamplingParams

WARM_STEPS = 8
PREFILLS = 3


class BenchmarkFailed(FarmError):
    """The engine did not do what it is measured at."""

    code = "benchmark_failed"


def decode(
    model: Bloom, config: BloomConfig, dtype: str, kv_dtype: str, batch: int, context: int, steps: int, budget: int
) -> dict[str, Any]:
    """Seconds of a step in which ``batch`` sequences of about ``context`` tokens decode, and the bytes it must read.

    The first sequences decode while the last ones are computed, so ``context`` is given as it was, on average.
    """
    engine = Engine(model, budget)
    for number in range(batch):
        prompt = random_prompt(config, context - steps // 2, seed=number)
        most = model.ready.context - len(prompt)
        engine.add(Add(str(number), prompt, SamplingParams(max_tokens=most, ignore_eos=True)))
    had = dict.fromkeys(map(str, range(batch)), 0)
    while not all(had.values()):
        _count(engine.step(), had)
    for _ in range(WARM_STEPS):
        _count(engine.step(), had)
    before = sum(had.values())
    started = time.perf_counter()
    for _ in range(steps):
        _count(engine.step(), had)
    wall_s = time.perf_counter() - started
    after = sum(had.values())
    engine.halt()
    mean_context = context - steps // 2 + (before + after) / 2 / batch
    return {
        "batch": batch,
        "context": round(mean_context),
        "step_ms": round(1000 * wall_s * batch / (after - before), 4),
        "tokens_per_s": round((after - before) / wall_s, 1),
        "step_bytes": round(step_bytes(config, dtype, kv_dtype, batch, mean_context)),
        "preemptions": engine.stats.preemptions,
    }


def prefill(model: Bloom, config: BloomConfig, tokens: int, budget: int) -> dict[str, Any]:
    """Seconds until the first token of a prompt, nothing else running; the median of some."""
    walls = []
    for number in range(PREFILLS + 1):
        engine = Engine(model, budget)
        engine.add(Add("prompt", random_prompt(config, tokens, seed=number), SamplingParams(max_tokens=1)))
        started = time.perf_counter()
        while engine.has_work:
            _count(engine.step(), {"prompt": 0})
        walls.append(time.perf_counter() - started)
    wall_s = statistics.median(walls[1:])
    return {
        "tokens": tokens,
        "wall_s": round(wall_s, 5),
        "tokens_per_s": round(tokens / wall_s, 1),
        "operations": prefill_operations(config, tokens),
    }


def workload(model: Bloom, items: list[Item], budget: int) -> dict[str, Any]:
    """All requests there at the start: tokens per second, time to the first token, times between tokens."""
    engine = Engine(model, budget)
    started = time.perf_counter()
    for number, item in enumerate(items):
        engine.add(Add(str(number), item.prompt, SamplingParams(max_tokens=item.max_tokens, ignore_eos=True)))
    last: dict[str, float] = {}
    first_s: list[float] = []
    gaps_s: list[float] = []
    had = {str(number): 0 for number in range(len(items))}
    while engine.has_work:
        events = engine.step()
        now = time.perf_counter()
        for id in _count(events, had):
            if id in last:
                gaps_s.append(now - last[id])
            else:
                first_s.append(now - started)
            last[id] = now
    wall_s = time.perf_counter() - started
    assert list(had.values()) == [item.max_tokens for item in items]
    tokens = sum(had.values())
    return {
        "requests": len(items),
        "tokens": tokens,
        "wall_s": round(wall_s, 4),
        "tokens_per_s": round(tokens / wall_s, 1),
        "steps": engine.steps,
        "ttft_ms": quantiles_ms(first_s),
        "itl_ms": quantiles_ms(gaps_s),
        "preemptions": engine.stats.preemptions,
    }


def random_prompt(config: BloomConfig, tokens: int, seed: int) -> list[int]:
    """Tokens of no meaning, others for each seed."""
    draw = random.Random(seed)
    return [draw.randrange(FIRST_BYTE, config.vocab) for _ in range(tokens)]


def quantiles_ms(seconds: list[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    ordered = sorted(seconds)
    return {
        name: round(1000 * ordered[int(share * (len(ordered) - 1))], 3) for name, share in (("p50", 0.5), ("p99", 0.99))
    }


def _count(events: list[Event], had: dict[str, int]) -> list[str]:
    """Add up what was emitted; returns of whom. Raises BenchmarkFailed for a request that failed."""
    found = []
    for event in events:
        if isinstance(event, Failed):
            raise BenchmarkFailed(f"{event.code}: {event.message}")
        if isinstance(event, Emitted):
            had[event.id] += len(event.tokens)
            found.append(event.id)
    return found
