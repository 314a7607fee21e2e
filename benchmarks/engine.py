"""The engine alone against transformers: the same requests, model and threads, in one run.

    python -m benchmarks.engine [--threads 2] [--requests 64] [--repeats 3] [--skip-one-by-one]

Baselines: ``generate`` in static batches of 16, in order of arrival, each run to its longest member; and one request at
a time. Every output has exactly its requested length. Wall and CPU seconds are both given: where others share the
machine, compare CPU seconds at one thread. The wait policy is that of a worker's engine process.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment
from benchmarks.report import commit, machine
from benchmarks.static import load, run_static
from benchmarks.workload import BENCHMARK, Item, requests, save_bloom
from farm.settings import EngineSettings, ModelSettings
from workers.engine.bloom import Bloom
from workers.engine.engine import Engine
from workers.engine.protocol import Add, Emitted, SamplingParams

STATIC_BATCH = 16
Outputs = list[list[int]]


def run_engine(model: Bloom, items: list[Item], prefill_budget: int) -> tuple[Outputs, int]:
    """Generate for all requests at once; returns their tokens and the number of steps."""
    engine = Engine(model, prefill_budget)
    for i, item in enumerate(items):
        engine.add(Add(str(i), item.prompt, SamplingParams(max_tokens=item.max_tokens, ignore_eos=True)))
    outputs: Outputs = [[] for _ in items]
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, Emitted):
                outputs[int(event.id)] += [token.id for token in event.tokens]
    return outputs, engine.steps


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """The call's result, and its wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Measure and print; the last line is one JSON object."""
    environment.enter("benchmarks.engine")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; the best counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-one-by-one", action="store_true", help="leave the slowest baseline out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(save_bloom(Path(folder), BENCHMARK), options)))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run the engine and the baselines in turn, ``repeats`` times, and compare their best."""
    settings = EngineSettings(threads=options.threads)
    ours = Bloom(ModelSettings(id=str(folder)), settings)
    theirs = load(folder)
    items = requests(options.requests, BENCHMARK.vocab, options.seed)
    tokens = sum(item.max_tokens for item in items)
    runs: dict[str, Callable[[], Any]] = {
        "engine": lambda: run_engine(ours, items, settings.prefill_budget),
        "static_16": lambda: _run_baseline(theirs, items, STATIC_BATCH, options.threads),
    }
    if not options.skip_one_by_one:
        runs["one_by_one"] = lambda: _run_baseline(theirs, items, 1, options.threads)
    run_engine(ours, items, settings.prefill_budget)
    run_static(theirs, items[:2], 2)
    best: dict[str, tuple[float, float]] = {}
    results: dict[str, Any] = {}
    for _ in range(options.repeats):
        for name, run in runs.items():
            results[name], wall_s, cpu_s = timed(run)
            before = best.get(name, (wall_s, cpu_s))
            best[name] = min(before[0], wall_s), min(before[1], cpu_s)
            print(f"{name:11} {wall_s:7.2f} s wall {cpu_s:7.2f} s CPU {tokens / wall_s:8.0f} tokens/s", file=sys.stderr)
    outputs, steps = results["engine"]
    assert [len(output) for output in outputs] == [item.max_tokens for item in items]
    reference = results.get("one_by_one", results["static_16"])
    wall_s, cpu_s = best["engine"]
    return {
        "benchmark": "engine",
        "times_static_16": round(best["static_16"][0] / wall_s, 2),
        "times_static_16_cpu": round(best["static_16"][1] / cpu_s, 2),
        "times_one_by_one": round(best["one_by_one"][0] / wall_s, 2) if "one_by_one" in best else None,
        "tokens_per_s": round(tokens / wall_s),
        "step_ms": round(1000 * wall_s / steps, 2),
        "steps": steps,
        "wall_s": {name: round(wall, 3) for name, (wall, _) in best.items()},
        "cpu_s": {name: round(cpu, 3) for name, (_, cpu) in best.items()},
        "same_as_reference": sum(ours == theirs for ours, theirs in zip(outputs, reference, strict=True)),
        "workload": {"requests": len(items), "tokens": tokens, "seed": options.seed},
        "model": {
            "hidden": BENCHMARK.hidden,
            "layers": BENCHMARK.layers,
            "heads": BENCHMARK.heads,
            "vocab": BENCHMARK.vocab,
        },
        "dtype": "float32",
        "threads": options.threads,
        "machine": {**machine(), "torch": torch.__version__},
        "commit": commit(),
    }


def _run_baseline(model: Any, items: list[Item], batch: int, threads: int) -> Outputs:
    """With all threads: where the engine has kernels of its own, it leaves torch only one."""
    left = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return run_static(model, items, batch)
    finally:
        torch.set_num_threads(left)


if __name__ == "__main__":
    main()
