"""Time between tokens of eight running streams, alone and while long prompts keep arriving.

    python -m benchmarks.latency [--quick]

The engine alone on the benchmark's model. The streams decode; every second a prompt of 1,500 tokens comes, wants one
token and goes. Quiet and disturbed spells take turns. A reader of a stream sees every gap, so the 99th percentile
counts.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import environment
from benchmarks.byte_bpe import FIRST_BYTE
from benchmarks.report import finish
from benchmarks.workload import BENCHMARK, save_bloom
from farm.settings import load_settings
from workers.engine.bloom import Bloom
from workers.engine.engine import Engine
from workers.engine.protocol import Add, Emitted, SamplingParams

STREAMS = 8
STREAM_PROMPT_TOKENS = 32
STREAM_TOKENS = 1_900
LONG_PROMPT_TOKENS = 1_500
EVERY_S = 1.0
SPELLS = 3
SPELL_S = 6.0
GOAL = 3.0


def spell(model: Bloom, prefill_budget: int, seconds: float, *, disturbed: bool) -> list[float]:
    """Seconds between any stream's one token and its next, for so long or until a stream has all its tokens."""
    rng = random.Random(0)
    engine = Engine(model, prefill_budget)
    greedy = SamplingParams(max_tokens=STREAM_TOKENS, ignore_eos=True)
    streams = [str(number) for number in range(STREAMS)]
    for id in streams:
        engine.add(Add(id, _prompt(rng, STREAM_PROMPT_TOKENS), greedy))
    last: dict[str, float] = {}
    while len(last) < STREAMS:
        last |= dict.fromkeys(_spoke(engine), time.perf_counter())
    gaps: list[float] = []
    counts = dict.fromkeys(streams, 1)
    started = next_at = time.perf_counter()
    arrived = 0
    while time.perf_counter() < started + seconds and max(counts.values()) < STREAM_TOKENS:
        if disturbed and time.perf_counter() >= next_at:
            arrived += 1
            next_at += EVERY_S
            prompt = _prompt(rng, LONG_PROMPT_TOKENS)
            engine.add(Add(f"long-{arrived}", prompt, SamplingParams(max_tokens=1, ignore_eos=True)))
        spoke = _spoke(engine)
        now = time.perf_counter()
        for id in spoke & last.keys():
            gaps.append(now - last[id])
            last[id] = now
            counts[id] += 1
    return gaps


def _prompt(rng: random.Random, tokens: int) -> list[int]:
    return [rng.randrange(FIRST_BYTE, BENCHMARK.vocab) for _ in range(tokens)]


def _spoke(engine: Engine) -> set[str]:
    """Take a step; returns whose tokens came."""
    return {event.id for event in engine.step() if isinstance(event, Emitted)}


def quantiles(gaps: list[float]) -> tuple[float, float]:
    """The median and the 99th percentile."""
    cuts = statistics.quantiles(gaps, n=100)
    return cuts[49], cuts[98]


def main() -> None:
    """Measure both kinds of spell in turn, and print."""
    environment.enter("benchmarks.latency")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short spell of each, to see that it runs")
    quick = parser.parse_args().quick
    quiet: list[float] = []
    disturbed: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_bloom(Path(scratch) / "bloom", BENCHMARK)
        settings = load_settings(model={"id": str(folder), "dtype": "float32"})
        model = Bloom(settings.model, settings.engine)
        for _ in range(1 if quick else SPELLS):
            seconds = 1.5 if quick else SPELL_S
            quiet += spell(model, settings.engine.prefill_budget, seconds, disturbed=False)
            disturbed += spell(model, settings.engine.prefill_budget, seconds, disturbed=True)
    (quiet_p50, quiet_p99), (busy_p50, busy_p99) = quantiles(quiet), quantiles(disturbed)
    finish(
        "latency",
        [
            (f"{STREAMS} streams alone", f"p50 {1e3 * quiet_p50:6.1f} ms   p99 {1e3 * quiet_p99:6.1f} ms"),
            (
                f"with a {LONG_PROMPT_TOKENS:,}-token prompt every {EVERY_S:g} s",
                f"p50 {1e3 * busy_p50:6.1f} ms   p99 {1e3 * busy_p99:6.1f} ms",
            ),
            ("p99, with / without", f"{busy_p99 / quiet_p99:.2f}x  (goal: within {GOAL:g}x)"),
        ],
        {
            "p50_s": quiet_p50,
            "p99_s": quiet_p99,
            "disturbed_p50_s": busy_p50,
            "disturbed_p99_s": busy_p99,
            "times_p99": busy_p99 / quiet_p99,
            "streams": STREAMS,
            "long_prompt_tokens": LONG_PROMPT_TOKENS,
            "prefill_budget": settings.engine.prefill_budget,
            "gaps": len(quiet),
        },
    )


if __name__ == "__main__":
    main()
