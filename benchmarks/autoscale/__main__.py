"""A bursty day under k8s/components/keda, keda-zero and fixed numbers of workers: worker-hours and waits. Simulated.

    python -m benchmarks.autoscale [--docs] [--start-s 240]

A worker's pace is the measured one of the 560M shape on two CPU cores (benchmarks/results): no figure is of a GPU.
Cost is in worker-hours, from the moment a worker is asked for. ``start_s`` is a parameter: how long until a new worker
has its node, image and weights. Metrics are seen as they are, not as the last scrape had them. ``--docs`` writes the
table and the picture into docs/capacity.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.autoscale.chart import svg
from benchmarks.autoscale.day import DAY_S, Job, day
from benchmarks.autoscale.farm import SLOTS, Farm, Pace
from benchmarks.autoscale.policy import Pool, pools
from benchmarks.report import finish

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "benchmarks" / "results" / "560m-amd-epyc-2-cores.json"
PICTURE = ROOT / "benchmarks" / "results" / "autoscale.svg"
PAGE = ROOT / "docs" / "capacity.md"
BEGIN, END = "<!-- autoscale: written by `python -m benchmarks.autoscale --docs` -->", "<!-- end of autoscale -->"
MAIN, BACKUP = "bloom7b1-inference", "bloom7b1-inference-backup"
PEAK_WORKERS = 8.0
SEED = 7
SHOWN = ("keda", "keda-zero", "fixed 10")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--docs", action="store_true", help="write docs/capacity.md and the picture")
    parser.add_argument("--start-s", type=float, default=240.0, help="seconds until a new worker is ready")
    asked = parser.parse_args()
    record = json.loads(RECORD.read_text(encoding="utf-8"))["contenders"]
    pace = Pace(record["farm"]["tokens_per_s"], record["one_by_one"]["tokens_per_s"], asked.start_s)
    mean_tokens = statistics.mean(job.tokens for job in day(1.0, SEED))
    jobs = day(PEAK_WORKERS * pace.full / mean_tokens, SEED)
    results, histories = {}, {}
    for name, scaled, replicas in policies():
        farm = simulate(jobs, pace, scaled, replicas)
        results[name], histories[name] = result(farm), farm.history
    if asked.docs:
        PICTURE.write_text(svg({name: histories[name] for name in SHOWN}, DAY_S), encoding="utf-8")
        write(results)
    rows = [(name, ", ".join(f"{key} {value:,}" for key, value in one.items())) for name, one in results.items()]
    about: dict[str, Any] = {"jobs": len(jobs), "mean_tokens": round(mean_tokens, 1), "seed": SEED, "slots": SLOTS}
    finish("autoscale", rows, {"workload": about, "pace": asdict(pace), "results": results})


def policies() -> list[tuple[str, list[Pool], dict[str, int]]]:
    """What is compared: a name, the pools that scale, and the workers at midnight."""
    fixed: list[tuple[str, list[Pool], dict[str, int]]] = [(f"fixed {n}", [], {MAIN: n}) for n in (8, 10, 16, 24)]
    return [
        ("keda", pools(to_zero=False), {MAIN: 1, BACKUP: 1}),
        ("keda-zero", pools(to_zero=True), {MAIN: 0, BACKUP: 0}),
        *fixed,
    ]


def simulate(jobs: list[Job], pace: Pace, scaled: list[Pool], replicas: dict[str, int]) -> Farm:
    """Run the day; the jobs given are not changed."""
    farm = Farm([replace(job) for job in jobs], pace, scaled, replicas)
    farm.run(DAY_S)
    return farm


def result(farm: Farm) -> dict[str, float]:
    """Worker-hours of the day, and how long jobs waited and took."""
    waits = [job.started_s - job.came_s for job in farm.jobs if job.started_s is not None]
    took = [job.ended_s - job.came_s for job in farm.jobs if job.ended_s is not None]
    assert len(waits) == len(took) == len(farm.jobs)
    wait, whole = statistics.quantiles(waits, n=100), statistics.quantiles(took, n=100)
    return {
        "worker_hours": round(farm.worker_s / 3600, 1),
        "most_workers": max(count for _, count, _ in farm.history),
        "wait_p50_s": round(wait[49], 1),
        "wait_p95_s": round(wait[94], 1),
        "wait_p99_s": round(wait[98], 1),
        "longest_wait_s": round(max(waits)),
        "took_p50_s": round(whole[49], 1),
        "took_p95_s": round(whole[94], 1),
        "handed_over": farm.handed_over,
    }


def write(results: dict[str, dict[str, float]]) -> None:
    """Put the table between the page's marks."""
    head = "| workers | worker-hours | most | wait p50 | p95 | p99 | longest | whole p50 | p95 | jobs handed over |"
    lines = [head, "|---" * 10 + "|"]
    for name, one in results.items():
        seconds = [f"{one[key]:,.0f} s" for key in list(one)[2:8]]
        row = [
            name,
            f"{one['worker_hours']:,.0f}",
            f"{one['most_workers']:.0f}",
            *seconds,
            f"{one['handed_over']:,.0f}",
        ]
        lines.append("| " + " | ".join(row) + " |")
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(before + "\n\n".join([BEGIN, "\n".join(lines), END]) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
