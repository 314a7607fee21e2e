"""What a job and a token cost the Redis server: its CPU time, commands, bytes on the wire, in the file and in memory.

    python -m benchmarks.redis_cost [--docs]

Real workers (synthetic engine, 32 slots, 25 ms a step), a real client that maps over prompts of 500 bytes, an embedded
server with an append-only file. Three runs: workers with nothing to do, jobs of one token, jobs of 128. What they take
idle is subtracted; the difference between one token and 128 is what tokens cost. CPU time and counts are what is
measured, no elapsed time: other load on the machine lengthens a run and hardly changes its figures.

The keeper looks at every worker to see how much room there is: what a look costs with 500 of them is measured apart.
``--docs`` keeps the figures and writes docs/capacity.md with them.
"""

from __future__ import annotations

import argparse
import threading
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from benchmarks import capacity
from benchmarks.fleet import Worker, empty_farm, url_of
from benchmarks.report import finish
from farm import Farm
from farm.contracts import Request
from farm.ledger.attempts import Attempts
from farm.ledger.jobs import Jobs
from farm.ledger.upkeep import Upkeep
from farm.settings import load_settings

WORKERS, SLOTS, STEP_S = 2, 32, 0.025
IDLE_S = 10.0
PROMPT = "a prompt of some length " * 21  # 504 bytes
SHORT, LONG = 1, 128
JOBS = {SHORT: 2_000, LONG: 512}
QUEUED = 5_000
CROWD, LOOKS = 500, 200


@dataclass(frozen=True)
class Cost:
    """What the server did, in all or per something."""

    cpu_us: float
    commands: float
    received: float
    sent: float
    file: float
    memory: float

    def less(self, other: Cost, times: float = 1.0) -> Cost:
        return Cost(*(mine - times * theirs for mine, theirs in zip(self.all, other.all, strict=True)))

    def per(self, count: float) -> Cost:
        return Cost(*(value / count for value in self.all))

    @property
    def all(self) -> tuple[float, ...]:
        return tuple(asdict(self).values())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--docs", action="store_true", help="keep the figures, and write them into docs/capacity.md")
    asked = parser.parse_args()
    with empty_farm() as jobs:
        queued = memory_of_queued(jobs)
    with empty_farm() as jobs:
        look_us = look_at_workers(jobs)
    with empty_farm() as jobs:
        about = {"ENGINE__KIND": "synthetic", "ENGINE__MAX_SLOTS": SLOTS, "ENGINE__SYNTHETIC_STEP_S": STEP_S}
        workers = [Worker(jobs, f"w{number}", **about) for number in range(WORKERS)]
        try:
            run(jobs, SHORT, 2 * SLOTS)  # connections, scripts, and the first of everything
            idle_s, idle = measure(jobs, lambda: threading.Event().wait(IDLE_S))
            costs = {}
            for tokens, count in JOBS.items():
                took_s, all_of_it = measure(jobs, partial(run, jobs, tokens, count))
                costs[tokens] = all_of_it.less(replace(idle.per(idle_s), memory=0.0), took_s).per(count)
        finally:
            for worker in workers:
                worker.kill()
    found = tell(queued, look_us, idle.per(idle_s * WORKERS), costs)
    if asked.docs:
        capacity.write(found)


def memory_of_queued(jobs: Jobs) -> float:
    """Bytes of the server's memory for a job that waits."""
    request = Request(prompt=PROMPT)
    jobs.submit([jobs.place(request) for _ in range(200)])
    before = jobs.client.info("memory")["used_memory"]
    jobs.submit([jobs.place(request) for _ in range(QUEUED)])
    return float(jobs.client.info("memory")["used_memory"] - before) / QUEUED


def look_at_workers(jobs: Jobs) -> float:
    """Microseconds of the server's CPU for one look of the keeper, with a crowd of live workers and nothing to send."""
    for number in range(CROWD):
        Attempts(jobs, f"w{number}.0").register(f"w{number}", "tiny-bloom", SLOTS, "model", None)
    keeper = Upkeep(jobs)
    keeper.dispatch()

    def look() -> None:
        for _ in range(LOOKS):
            keeper.dispatch()

    return measure(jobs, look)[1].cpu_us / LOOKS


def run(jobs: Jobs, tokens: int, count: int) -> None:
    """Have so many prompts answered, and read the answers."""
    with Farm(load_settings(redis={"url": url_of(jobs)})) as farm:
        answered = sum(1 for _ in farm.map([PROMPT] * count, max_tokens=tokens, window=4 * SLOTS, ignore_eos=True))
    assert answered == count


def measure(jobs: Jobs, work: Any) -> tuple[float, Cost]:
    """What the server did during some work, and for how many of its seconds."""
    began, before = _now(jobs)
    work()
    ended, after = _now(jobs)
    return ended - began, after.less(before)


def _now(jobs: Jobs) -> tuple[float, Cost]:
    info: dict[str, Any] = jobs.client.info("everything")
    seconds, microseconds = jobs.client.time()
    cpu_s = info["used_cpu_user"] + info["used_cpu_sys"]
    counted = Cost(
        cpu_us=cpu_s * 1e6,
        commands=sum(value["calls"] for name, value in info.items() if name.startswith("cmdstat_")),
        received=info["total_net_input_bytes"],
        sent=info["total_net_output_bytes"],
        file=info["aof_current_size"],
        memory=info["used_memory"],
    )
    return seconds + microseconds / 1e6, counted


def tell(queued: float, look_us: float, idle: Cost, costs: dict[int, Cost]) -> dict[str, Any]:
    """Print what a job, a token and an idle worker cost. Returns the figures."""
    token = costs[LONG].less(costs[SHORT]).per(LONG - SHORT)
    job = costs[SHORT].less(token, SHORT)
    rows = [
        ("memory of a queued job, 504-byte prompt", f"{queued:,.0f} bytes"),
        (f"a keeper's look at {CROWD} workers: CPU of the server", f"{look_us:,.0f} µs"),
    ]
    for name, cost, of in (
        ("job", job, "a job"),
        ("token", token, "a token"),
        ("worker", idle, "an idle worker and second"),
    ):
        rows += [
            (f"{name}: CPU of the server", f"{cost.cpu_us:,.1f} µs {of}"),
            (f"{name}: commands, scripts' own ones included", f"{cost.commands:,.2f}"),
            (f"{name}: received, sent", f"{cost.received:,.0f}, {cost.sent:,.0f} bytes"),
            (f"{name}: append-only file", f"{cost.file:,.0f} bytes"),
        ]
    idle = replace(idle, memory=0.0)  # what the server frees meanwhile is nobody's
    figures = {
        name: {part: round(value, 3) for part, value in asdict(cost).items()}
        for name, cost in (("job", job), ("token", token), ("idle_worker_second", idle))
    }
    rows.append(
        ("memory of an answered job, and of each of its tokens", f"{job.memory:,.0f}, {token.memory:,.0f} bytes")
    )
    work = {"workers": WORKERS, "slots": SLOTS, "step_s": STEP_S, "jobs": {str(k): v for k, v in JOBS.items()}}
    found = {"workload": work, "queued_job_bytes": round(queued), "look_us": {str(CROWD): round(look_us)}, **figures}
    finish("redis_cost", rows, found)
    return found


if __name__ == "__main__":
    main()
