"""Tokens per second end to end, through Python client, Redis, keeper, Celery and engine, against transformers.

64 requests, prompts of 8 to 128 tokens, outputs lognormal(3.5, 1.0) clipped to 4 to 256, a random Bloom 512 wide with 8
layers, 8 heads and a vocabulary of 8,192. The same weights, prompts, lengths and cores for all. ``--quick`` takes 16
requests, to see that it runs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import BloomForCausalLM
from transformers.utils import logging

from benchmarks.engine import STATIC_BATCH, run_static
from benchmarks.report import finish, machine
from benchmarks.workload import BENCHMARK, Item, requests, save_bloom
from farm import Farm
from farm.local.stack import Stack
from farm.settings import load_settings

GOAL = 3.5
REPEATS = 3
BASELINE_REPEATS = 2


def farm_end_to_end(folder: Path, state: Path, items: list[Item]) -> tuple[list[float], list[list[int]]]:
    """Seconds of each repeat through a local farm with one worker, and the tokens of the last one."""
    settings = load_settings(
        model={"id": str(folder), "dtype": "float32"}, local={"state_dir": state}, logs={"level": "WARNING"}
    )
    prompts = [
        {"prompt": item.prompt, "max_tokens": item.max_tokens, "ignore_eos": True, "return_token_ids": True}
        for item in items
    ]
    with Stack(settings, workers=1, flower=False) as stack:
        stack.wait_ready(120)
        with Farm(load_settings(redis={"url": stack.redis_url}, model={"id": str(folder)})) as farm:
            list(farm.map(prompts[:8]))
            times = []
            for _ in range(REPEATS):
                start = time.perf_counter()
                answers = list(farm.map(prompts, window=len(prompts)))
                times.append(time.perf_counter() - start)
    return times, [answer.token_ids for answer in answers]


def _timed(run: Callable[[], list[list[int]]]) -> tuple[float, list[list[int]]]:
    start = time.perf_counter()
    outputs = run()
    return time.perf_counter() - start, outputs


def main() -> None:
    """Measure all in one run; exact lengths are checked, and tokens compared with one-by-one generation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="16 requests instead of 64")
    quick = parser.parse_args().quick
    logging.disable_progress_bar()
    items = requests(16 if quick else 64, BENCHMARK.vocab)
    tokens = sum(item.max_tokens for item in items)
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_bloom(Path(scratch) / "bloom-512", BENCHMARK)
        baseline = BloomForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        run_static(baseline, items[:2], 1)
        single_s, single = _timed(lambda: run_static(baseline, items, 1))
        static_s = statistics.median(
            _timed(lambda: run_static(baseline, items, STATIC_BATCH))[0] for _ in range(BASELINE_REPEATS)
        )
        times, ours = farm_end_to_end(folder, Path(scratch) / "state", items)
    assert [len(out) for out in ours] == [item.max_tokens for item in items], "a length differs"
    same = sum(a == b for a, b in zip(ours, single, strict=True))
    farm_s = statistics.median(times)
    finish(
        "throughput",
        [
            ("requests, tokens", f"{len(items)}, {tokens:,}"),
            ("transformers, one by one", f"{tokens / single_s:8,.0f} tokens/s"),
            ("transformers, static batches of 16", f"{tokens / static_s:8,.0f} tokens/s"),
            ("farm, end to end", f"{tokens / farm_s:8,.0f} tokens/s"),
            ("farm / static 16", f"{static_s / farm_s:8.2f}x  (goal {GOAL}x)"),
            ("farm / one by one", f"{single_s / farm_s:8.2f}x"),
            ("outputs equal to one by one", f"{same} of {len(items)}"),
        ],
        {
            "model": "bloom 512x8x8, vocabulary 8192, blocks x4",
            "dtype": "float32",
            "requests": len(items),
            "tokens": tokens,
            "threads": torch.get_num_threads(),
            "cores": machine()["cores"],
            "single_tokens_s": tokens / single_s,
            "static16_tokens_s": tokens / static_s,
            "farm_tokens_s": tokens / farm_s,
            "times_static16": static_s / farm_s,
            "times_single": single_s / farm_s,
            "identical": same,
        },
    )


if __name__ == "__main__":
    main()
