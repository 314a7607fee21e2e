"""What the Python client costs: submitting, collecting and waiting, on an embedded server without a worker.

    python -m benchmarks.client

Wall time depends on what else the machine does; the client's own CPU time hardly does. Ends with one JSON line.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import finish
from farm import Farm
from farm.contracts import JobState
from farm.ledger.attempts import Advance, Attempts, Claim, Outcome
from farm.ledger.records import entry
from farm.ledger.upkeep import Upkeep
from farm.local.server import EmbeddedServer
from farm.settings import load_settings

JOBS = 20_000
WAITING = 10_000
WATCHED_S = 6.0


def timed(call: Callable[[], object], jobs: int) -> dict[str, float]:
    """Jobs a second, and the process's CPU microseconds a job."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"jobs_per_s": round(jobs / wall), "client_cpu_us": round(1e6 * cpu / jobs, 1)}


def finish_all(farm: Farm, count: int) -> None:
    """Play a worker that answers each job with two tokens."""
    attempts, upkeep, done = Attempts(farm.ledger, "bench"), Upkeep(farm.ledger), 0
    attempts.register("bench", "tiny-bloom", 1_000, "model", None)
    tokens = [entry(1, " a", None, None), entry(2, " b", None, None)]
    while done < count:
        attempts.progress([], 1_000)
        for message in upkeep.dispatch().messages:
            claim = attempts.claim(message.id, message.number)
            if isinstance(claim, Claim):
                done += 1
                last = Advance(claim.id, claim.nonce, 0, tokens, 3)
                attempts.finish(last, Outcome(JobState.SUCCEEDED, "length", "", "bench"))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer(Path(folder))
        server.start()
        with Farm(load_settings(redis={"url": server.url})) as farm:
            farm.submit_many(["warm-up"] * 200)
            farm.ledger.client.flushdb()
            small = [f"{number} " + "x" * 50 for number in range(JOBS)]
            large = [f"{number} " + "x" * 2_000 for number in range(JOBS)]
            figures = {"submit_50_chars": timed(lambda: farm.submit_many(small, max_tokens=32), JOBS)}
            figures["submit_2000_chars"] = timed(lambda: farm.submit_many(large, max_tokens=32), JOBS)
            farm.ledger.client.flushdb()
            jobs = farm.submit_many(small[:5_000], max_tokens=2)
            finish_all(farm, len(jobs))
            figures["collect"] = timed(lambda: list(farm.as_completed(jobs, window=1_000)), len(jobs))
            farm.ledger.client.flushdb()
            jobs = farm.submit_many(small[:WAITING], max_tokens=2)
            with farm.watching([job.id for job in jobs]):
                cpu = time.process_time()
                time.sleep(WATCHED_S)
                share = (time.process_time() - cpu) / WATCHED_S
                figures["waiting"] = {
                    "jobs": WAITING,
                    "client_cpu_percent": round(100 * share, 1),
                    "connections": len(farm.ledger.client.client_list()),
                }
        server.stop()
    finish("client", [(name, _words(found)) for name, found in figures.items()], {"jobs": JOBS, **figures})


def _words(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:,g}" for name, value in figures.items())


if __name__ == "__main__":
    main()
