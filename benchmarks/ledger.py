"""The ledger alone: jobs accepted and dispatched per second, bytes per queued job, the slowest call of each script.

    python -m benchmarks.ledger

An embedded server on this machine; 2 kB prompts; 100,000 jobs of one tenant queued when another tenant comes. The
longest call is the server's own figure (SLOWLOG), so a busy machine lengthens it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from benchmarks.report import finish
from farm.contracts import JobState, Request
from farm.ledger.attempts import Advance, Attempts, Claim, Outcome
from farm.ledger.jobs import Jobs
from farm.ledger.records import Submission, entry
from farm.ledger.scripts import NAMES, sha
from farm.ledger.upkeep import Upkeep
from farm.local.server import EmbeddedServer
from farm.settings import load_settings

QUEUED = 100_000
SLOTS = 32
ROUNDS = 40
ENDED = Outcome(JobState.SUCCEEDED, "length", "", "f")
PROMPT = "a prompt of some length " * 85  # 2,040 bytes


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer(Path(folder))
        server.start()
        try:
            measure(Jobs(load_settings(redis={"url": server.url, "timeout_s": 30})))
        finally:
            server.stop()


def measure(jobs: Jobs) -> None:
    """Fill the queue, let another tenant in, run some jobs through, and print what it took."""
    names = {sha(name): name for name in NAMES}
    submit(jobs, 2_000, "warm", PROMPT)  # also creates the connection and loads the scripts
    big = submit(jobs, 20_000, "big", PROMPT)
    ask: Callable[..., Any] = jobs.client.execute_command
    ask("FLUSHALL", "SYNC")  # else the server still frees while memory is read
    jobs.client.config_set("slowlog-log-slower-than", 0)
    jobs.client.config_set("slowlog-max-len", 1_000_000)
    took: dict[str, list[int]] = defaultdict(list)
    submit(jobs, 1, "ann", "x")
    collect(jobs.client, names, took)
    empty = jobs.client.info("memory")["used_memory"]
    small = submit(jobs, QUEUED, "ann", "x" * 10)
    collect(jobs.client, names, took)
    per_job = (jobs.client.info("memory")["used_memory"] - empty) / QUEUED
    position, dispatch = serve(jobs)
    collect(jobs.client, names, took)
    slowest = {name: (max(us) / 1000, statistics.median(us) / 1000, len(us)) for name, us in sorted(took.items())}
    rows = [
        ("submit, 2 kB prompts", f"{big:,.0f} jobs/s"),
        ("submit, 10-byte prompts", f"{small:,.0f} jobs/s"),
        ("memory per queued job, 10-byte prompt", f"{per_job:.0f} bytes"),
        (f"dispatch with {QUEUED:,} queued", f"{dispatch:.1f} µs a job"),
        ("another tenant's first job goes out as number", f"{position}"),
        *(
            (f"{name}: longest call, median, calls", f"{a:.2f} ms, {b:.3f} ms, {n}")
            for name, (a, b, n) in slowest.items()
        ),
    ]
    figures: dict[str, Any] = {
        "submit_2kb_per_s": round(big),
        "submit_10b_per_s": round(small),
        "bytes_per_queued_job": round(per_job),
        "dispatch_us_per_job": round(dispatch, 1),
        "newcomer_position": position,
        "longest_call_ms": {name: round(longest, 2) for name, (longest, _, _) in slowest.items()},
    }
    finish("ledger", rows, figures)


def submit(jobs: Jobs, count: int, tenant: str, prompt: str) -> float:
    """Jobs accepted per second by one client."""
    request = Request(prompt=prompt)
    placed: list[Submission] = [jobs.place(request, tenant=tenant) for _ in range(count)]
    started = time.perf_counter()
    jobs.submit(placed)
    return count / (time.perf_counter() - started)


def serve(jobs: Jobs) -> tuple[int, float]:
    """Run rounds of jobs through all scripts; returns a newcomer's place in the order and µs of dispatch per job."""
    hand, keeper = Attempts(jobs, "bench-1"), Upkeep(jobs)
    came = 0
    hand.register("bench", "tiny-bloom", SLOTS, "model", None)
    tokens = [entry(n, " word", None, None) for n in range(64)]
    order: list[str] = []
    times: list[float] = []
    for turn in range(ROUNDS):
        if turn == 2:
            submit(jobs, 1, "ben", "x")
            came = len(order)
        hand.progress([], SLOTS)
        keeper.keep()
        started = time.perf_counter()
        messages = keeper.dispatch().messages
        times.append((time.perf_counter() - started) / max(1, len(messages)))
        order += [jobs.views([message.id])[0].tenant for message in messages]  # type: ignore[union-attr]
        claims = [hand.claim(message.id, message.number) for message in messages[:SLOTS]]
        held = [claim for claim in claims if isinstance(claim, Claim)]
        hand.progress([Advance(claim.id, claim.nonce, 0, tokens[:32], 8) for claim in held], SLOTS)
        half = len(held) // 2
        for claim in held[:half]:
            hand.finish(Advance(claim.id, claim.nonce, 32, tokens[32:], 8), ENDED)
        hand.release([(claim.id, claim.nonce) for claim in held[half:]], "drain", "drain")
        jobs.cancel([claim.id for claim in held[half:]])
        jobs.view(messages[-1].id, with_position=True)
    return order[came:].index("ben") + 1, statistics.median(times) * 1e6


def collect(client: redis.Redis, names: dict[str, str], took: dict[str, list[int]]) -> None:
    """Add the µs of each script's calls by the server's slow log, and empty it."""
    for call in client.slowlog_get(1_000_000):
        words = call["command"].decode() if isinstance(call["command"], bytes) else str(call["command"])
        verb, sha, *_ = *words.split(" ", 2), ""
        if verb.upper() == "EVALSHA" and sha in names:
            took[names[sha]].append(call["duration"])
    client.slowlog_reset()


if __name__ == "__main__":
    main()
