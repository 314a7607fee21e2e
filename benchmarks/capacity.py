"""What so many GPUs need of Redis, on paper: from the measured cost of a job, a token and a worker.

    python -m benchmarks.capacity [--tokens-per-s 500] [--tokens-per-job 200] [--gpus-per-worker 2]

What a GPU generates is an assumption that you state, and so is the length of a job. ``benchmarks.redis_cost --docs``
measures anew and writes docs/capacity.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.report import finish, machine

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "results" / "redis-cost.json"
PAGE = ROOT / "docs" / "capacity.md"
BEGIN, END = "<!-- redis: written by `python -m benchmarks.redis_cost --docs` -->", "<!-- end of redis -->"
GPUS = (10, 1_000, 100_000)
BUSY = 0.5  # how busy a server's one thread may be on average: bursts need the rest


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens-per-s", type=float, default=500.0, help="of one GPU; assumed")
    parser.add_argument("--tokens-per-job", type=float, default=200.0)
    parser.add_argument("--gpus-per-worker", type=float, default=2.0)
    asked = parser.parse_args()
    found = json.loads(RECORD.read_text(encoding="utf-8"))
    needs = {gpus: need(found, gpus, asked.tokens_per_s, asked.tokens_per_job, asked.gpus_per_worker) for gpus in GPUS}
    rows = [
        (f"{gpus:,} GPUs", ", ".join(f"{name} {value:,.4g}" for name, value in one.items()))
        for gpus, one in needs.items()
    ]
    finish("capacity", rows, {"assumed": vars(asked), "needs": {str(gpus): one for gpus, one in needs.items()}})


def need(found: dict[str, Any], gpus: float, pace: float, length: float, per_worker: float) -> dict[str, float]:
    """What so many GPUs need of Redis.  pace: tokens per second of one.  length: tokens of a job."""
    workers, tokens = gpus / per_worker, gpus * pace
    jobs = tokens / length

    def all_of(part: str) -> float:
        job, token, idle = (found[name][part] for name in ("job", "token", "idle_worker_second"))
        return float(jobs * job + tokens * token + workers * idle)

    cores = all_of("cpu_us") / 1e6
    return {
        "workers": workers,
        "jobs_per_s": jobs,
        "tokens_per_s": tokens,
        "cores": cores,
        "servers": max(1.0, cores / BUSY),
        "commands_per_s": all_of("commands"),
        "in_mb_per_s": all_of("received") / 1e6,
        "out_mb_per_s": all_of("sent") / 1e6,
        "file_mb_per_s": all_of("file") / 1e6,
        "hour_of_results_gb": 3600 * (jobs * found["job"]["memory"] + tokens * found["token"]["memory"]) / 1e9,
    }


def most_gpus(found: dict[str, Any], pace: float, length: float, per_worker: float) -> float:
    """How many GPUs one server carries."""
    return BUSY / need(found, 1.0, pace, length, per_worker)["cores"]


def write(found: dict[str, Any]) -> None:
    """Keep what was measured, and put the tables between the page's marks."""
    found = {"machine": machine(), **found}
    RECORD.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(text.split(BEGIN)[0] + tables(found) + text.split(END)[1], encoding="utf-8")


def tables(found: dict[str, Any]) -> str:
    """The page's part with figures."""
    parts = (
        ("cpu_us", "CPU of the server, µs", ",.1f"),
        ("commands", "commands, those in scripts too", ",.1f"),
        ("received", "bytes in", ",.0f"),
        ("sent", "bytes out", ",.0f"),
        ("file", "bytes in the append-only file", ",.0f"),
    )
    names = ("job", "token", "idle_worker_second")
    lines = ["| | a job | a token | a worker, each second |", "|---|---|---|---|"]
    lines += [
        f"| {label} | " + " | ".join(format(found[name][part], form) for name in names) + " |"
        for part, label, form in parts
    ]
    lines += [
        "| bytes in memory until its retention ends | "
        f"{found['job']['memory']:,.0f} | {found['token']['memory']:,.0f} | |"
    ]
    [(crowd, look_us)] = found["look_us"].items()
    lines += [
        "",
        f"A job that waits takes {found['queued_job_bytes']:,} bytes, its prompt of 504 among them. A keeper's look "
        f"for room, at most 50 a second, takes {look_us:,} µs when there are {crowd} workers.",
    ]
    rows = (
        "workers",
        "jobs_per_s",
        "tokens_per_s",
        "cores",
        "servers",
        "commands_per_s",
        "in_mb_per_s",
        "out_mb_per_s",
        "file_mb_per_s",
        "hour_of_results_gb",
    )
    labels = (
        "workers",
        "jobs/s",
        "tokens/s",
        "cores' worth of Redis",
        f"servers at {BUSY:.0%} of a core each",
        "commands/s",
        "MB/s in",
        "MB/s out",
        "MB/s into append-only files",
        "GB of memory for an hour of results",
    )
    needs = [need(found, gpus, 500.0, 200.0, 2.0) for gpus in GPUS]
    more = [
        "",
        "With 2 GPUs a worker, 500 tokens/s a GPU and 200 tokens a job, **all three assumed**:",
        "",
        "| | " + " | ".join(f"{gpus:,} GPUs" for gpus in GPUS) + " |",
        "|---" * (len(GPUS) + 1) + "|",
    ]
    more += [
        f"| {label} | " + " | ".join(_figure(one[name]) for one in needs) + " |"
        for label, name in zip(labels, rows, strict=True)
    ]
    ends = [
        f"{most_gpus(found, pace, 200.0, 2.0):,.0f} GPUs at {pace:,.0f} tokens/s each"
        for pace in (100.0, 500.0, 2000.0)
    ]
    more += ["", f"One server carries {', '.join(ends[:-1])}, or {ends[-1]}."]
    return "\n".join([BEGIN, "", *lines, *more, "", END])


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


if __name__ == "__main__":
    main()
