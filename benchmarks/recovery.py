"""What failures cost: seconds from a kill until the jobs run again, from SIGTERM to the exit, Redis commands a token.

    python -m benchmarks.recovery [--rounds 5]

Real worker processes of the default settings (lease 10 s) with the synthetic engine, 10 ms a step, on an embedded
server; a job runs again when another claim of it was granted, by the server's clock. Commands are those of one worker
with tiny-bloom, 32 slots and 256 tokens a job, all that it sends included: Celery, keeper, idle ticks. MONITOR counts
them, and apart from them what its scripts run inside the server. The baseline is plain Celery in the same run.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import redis

from benchmarks import redelivery
from benchmarks.fleet import PATIENCE_S, Worker, empty_farm, run_jobs, submit, url_of, wait_for
from benchmarks.report import finish
from farm import keys
from farm.ledger.jobs import Jobs
from farm.settings import EngineSettings, load_settings
from workers.engine_process import EngineProcess

JOBS = 8
SLOTS = 32
LONG, SHORT = 2_000, 256
WATCHDOG_S = 5.0
CELERY_TIMEOUT_S = 10.0
STEP = {"ENGINE__KIND": "synthetic", "ENGINE__SYNTHETIC_STEP_S": 0.01}


@dataclass(frozen=True, slots=True)
class Span:
    """Measured seconds, and what was promised of them."""

    name: str
    seconds: list[float]
    promise: str

    @property
    def quantiles(self) -> tuple[float, float]:
        """The median and the 99th percentile."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        return statistics.median(self.seconds), statistics.quantiles(self.seconds, n=100, method="inclusive")[98]


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each failure is brought about")
    rounds = parser.parse_args().rounds
    load_s = statistics.median(load() for _ in range(3))
    lease_s = load_settings({}).lease.lease_s
    with empty_farm() as jobs:
        killed = [took for _ in range(rounds) for took in worker_kill(jobs)]
    with empty_farm() as jobs, Worker(jobs, "w1", **STEP) as worker:
        engine = [took for _ in range(2 * rounds) for took in engine_end(jobs, worker, signal.SIGKILL)]
    with empty_farm() as jobs, Worker(jobs, "w1", ENGINE__WATCHDOG_S=WATCHDOG_S, **STEP) as worker:
        frozen = [took for _ in range(2) for took in engine_end(jobs, worker, signal.SIGSTOP)]
    with empty_farm() as jobs:
        drains = [drain(jobs) for _ in range(rounds)]
    spans = [
        Span("worker_kill", killed, f"lease + 2 s = {lease_s + 2:g} s"),
        Span("engine_kill", engine, f"3 s + {load_s:.2f} s of loading"),
        Span("engine_freeze", frozen, f"watchdog {WATCHDOG_S:g} s + 4 s + {load_s:.2f} s of loading"),
        Span("drain", drains, "5 s"),
    ]
    with empty_farm() as jobs:
        sent, inner = commands(jobs)
    with empty_farm() as jobs:
        baseline = redelivery.measure(url_of(jobs), CELERY_TIMEOUT_S, PATIENCE_S)
    report(rounds, load_s, lease_s, spans, sent, inner, baseline)


def worker_kill(jobs: Jobs) -> list[float]:
    """Seconds from the kill of a worker to each of its jobs' next claim, by a worker that idles."""
    with Worker(jobs, "victim", **STEP) as victim:
        ids = run_jobs(jobs, JOBS, LONG)
        with Worker(jobs, "spare", **STEP):
            killed_ms = server_ms(jobs)
            victim.kill()
            return claims_after(jobs, ids, killed_ms)


def engine_end(jobs: Jobs, worker: Worker, how: signal.Signals) -> list[float]:
    """Seconds from the engine's death or freeze to each job's next claim, by the same worker."""
    ids = run_jobs(jobs, JOBS, LONG)
    ended_ms = server_ms(jobs)
    worker.engine.send_signal(how)
    return claims_after(jobs, ids, ended_ms)


def drain(jobs: Jobs) -> float:
    """Seconds from SIGTERM to the exit of a worker with all slots in use; every job must be handed back unharmed."""
    with Worker(jobs, "w1", **STEP) as worker:
        ids = run_jobs(jobs, SLOTS, LONG)
        asked_at = time.monotonic()
        worker.process.terminate()
        assert worker.process.wait(30) == 0
        took_s = time.monotonic() - asked_at
    views = [view for view in jobs.views(ids) if view is not None]
    assert all(view.strikes == 0 and view.history[-1].reason == "drain" for view in views)
    jobs.cancel(ids)
    return took_s


def commands(jobs: Jobs) -> tuple[float, float]:
    """Commands per generated token: those that the worker sends, and those that its scripts run."""
    sent, inner = Counter[str](), Counter[str]()
    with Worker(jobs, "w1", ENGINE__MAX_SLOTS=SLOTS):
        submit(jobs, 4, max_tokens=8)
        wait_for(lambda: jobs.client.zcard(keys.kept("default")) == 4)
        with redis.Redis.from_url(url_of(jobs)) as client, client.monitor() as monitor:
            watcher = threading.Thread(target=_count, args=(monitor, sent, inner), daemon=True)
            watcher.start()
            ids = submit(jobs, SLOTS, max_tokens=SHORT, ignore_eos=True)
            # Seldom, since what this process asks is counted too.
            wait_for(lambda: jobs.client.zcard(keys.kept("default")) == SLOTS + 4, every_s=0.5)
            jobs.client.echo("done")
            watcher.join()
        tokens = sum(len(view.token_ids) for view in jobs.views(ids) if view)
    return sent.total() / tokens, inner.total() / tokens


def _count(monitor: Any, sent: Counter[str], inner: Counter[str]) -> None:
    """Count what the server runs until it is asked for an echo."""
    for seen in monitor.listen():
        name = seen["command"].split(" ", 1)[0].lower()
        if name == "echo":
            return
        (inner if seen["client_type"] == "lua" else sent)[name] += 1


def load() -> float:
    """Seconds that a synthetic engine takes from its start until it is ready."""
    os.environ["FARM_ENGINE__KIND"] = "synthetic"
    engine = EngineProcess(EngineSettings(kind="synthetic"), lambda _: None, lambda *_: None)
    started = time.monotonic()
    engine.start()
    took_s = time.monotonic() - started
    engine.kill()
    del os.environ["FARM_ENGINE__KIND"]
    return took_s


def claims_after(jobs: Jobs, ids: list[str], since_ms: float) -> list[float]:
    """Wait until each job was claimed after a moment; seconds from there. The jobs are cancelled then."""

    def claimed() -> list[float]:
        found = [jobs.client.hmget(keys.job(job_id), ["state", "claimed"]) for job_id in ids]
        return [float(at) for state, at in found if state == "running" and at is not None and float(at) > since_ms]

    wait_for(lambda: len(claimed()) == len(ids))
    took = [(at - since_ms) / 1000 for at in claimed()]
    jobs.cancel(ids)
    return took


def server_ms(jobs: Jobs) -> float:
    """The server's clock."""
    seconds, microseconds = jobs.client.time()
    return seconds * 1000 + microseconds / 1000


def report(
    rounds: int, load_s: float, lease_s: float, spans: list[Span], sent: float, inner: float, baseline: float | None
) -> None:
    """Print the table and the JSON line."""
    rows, figures = [], dict[str, Any]()
    for span in spans:
        p50, p99 = span.quantiles
        rows.append((span.name.replace("_", " "), f"p50 {p50:.2f} s, p99 {p99:.2f} s   (promise: {span.promise})"))
        figures[span.name] = {"p50_s": round(p50, 2), "p99_s": round(p99, 2), "times": len(span.seconds)}
    celery = f"over {PATIENCE_S:g} s" if baseline is None else f"{baseline:.1f} s"
    rows += [
        ("commands sent per token", f"{sent:.4f}   (promise: 0.1)"),
        ("commands inside scripts per token", f"{inner:.3f}"),
        (
            f"worker kill, plain Celery, visibility timeout {CELERY_TIMEOUT_S:g} s",
            f"{celery}; unless set, the timeout is {redelivery.DEFAULT_TIMEOUT_S:,} s",
        ),
    ]
    celery_figures = {
        "visibility_timeout_s": CELERY_TIMEOUT_S,
        "redelivered_s": baseline and round(baseline, 1),
        "default_visibility_timeout_s": redelivery.DEFAULT_TIMEOUT_S,
    }
    setting = {"rounds": rounds, "lease_s": lease_s, "watchdog_s": WATCHDOG_S, "load_s": round(load_s, 2)}
    per_token = {"commands_per_token": round(sent, 4), "script_commands_per_token": round(inner, 3)}
    finish("recovery", rows, {**setting, **figures, **per_token, "celery": celery_figures})


if __name__ == "__main__":
    main()
