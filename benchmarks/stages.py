"""A model in two stages that work at once against the same model in one, with the same threads in all.

    python -m benchmarks.stages [--model small|560m] [--quick]

Two stages have two steps in flight, so twice the slots. On one machine nothing is won by that: the figure says what the
pipeline costs, and what it costs that stages are whole blocks: with 8 blocks and a head, the larger of two stages has
7% more than half to do. On several devices each stage has a device of its own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import environment
from benchmarks.compare.plan import CASES
from benchmarks.engine import run_engine
from benchmarks.report import finish, machine
from benchmarks.workload import requests, save_bloom
from farm.settings import load_settings
from workers.engine.bloom import Bloom

STAGES = 2
SLOTS = 32
REQUESTS = {"small": 512, "560m": 256}
ROUNDS = 3
GOAL = 0.9


def load(folder: Path, stages: int, native: str) -> Bloom:
    """The model in so many stages, with slots for each."""
    settings = load_settings(
        model={"id": str(folder), "dtype": "float32"},
        engine={"devices": ["cpu"] * stages, "max_slots": SLOTS * stages, "native": native},
    )
    return Bloom(settings.model, settings.engine)


def main() -> None:
    """Measure in turn, and print; all tokens are compared."""
    environment.enter("benchmarks.stages")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="16 requests and one round, to see that it runs")
    parser.add_argument("--model", choices=sorted(REQUESTS), default="small", help="its shape; small by default")
    parser.add_argument("--native", choices=["auto", "off"], default="auto", help="the kernels; auto by default")
    options = parser.parse_args()
    case = CASES[options.model]
    items = requests(16 if options.quick else REQUESTS[options.model], case.config.vocab)
    tokens = sum(item.max_tokens for item in items)
    seconds: dict[int, list[float]] = {1: [], STAGES: []}
    outputs: dict[int, list[list[int]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_bloom(Path(scratch) / "bloom", case.config, scale=case.scale)
        models = {stages: load(folder, stages, options.native) for stages in seconds}
        for model in models.values():
            run_engine(model, items[:8], 128)
        for _ in range(1 if options.quick else ROUNDS):
            for stages, model in models.items():
                started = time.perf_counter()
                outputs[stages], _ = run_engine(model, items, 128)
                seconds[stages].append(time.perf_counter() - started)
    one_s, several_s = (statistics.median(seconds[stages]) for stages in (1, STAGES))
    same = sum(map(list.__eq__, outputs[1], outputs[STAGES]))
    finish(
        "stages",
        [
            ("requests, tokens", f"{len(items)}, {tokens:,}"),
            (f"one stage, {SLOTS} slots", f"{tokens / one_s:8,.0f} tokens/s"),
            (f"{STAGES} stages, {SLOTS * STAGES} slots", f"{tokens / several_s:8,.0f} tokens/s"),
            ("two stages / one", f"{one_s / several_s:8.2f}x  (goal {GOAL}x)"),
            ("outputs that are equal", f"{same} of {len(items)}"),
        ],
        {
            "model": options.model,
            "stages": STAGES,
            "native": options.native,
            "one_stage_tokens_s": tokens / one_s,
            "stages_tokens_s": tokens / several_s,
            "ratio": one_s / several_s,
            "identical": same,
            "requests": len(items),
            "tokens": tokens,
            "cores": machine()["cores"],
        },
    )


if __name__ == "__main__":
    main()
