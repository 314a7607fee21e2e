"""The REST API against what could be had for less: CPU per request, requests and jobs per second, and open streams.

CPU is the serving process's own, so that neither the client nor Redis counts. Every server runs under uvicorn with
uvloop and httptools on the same machine in the same run; the API asks for keys.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import uvloop

from benchmarks import rest_streams
from benchmarks.report import finish
from farm import keys
from farm.contracts import parse_request
from farm.ledger.attempts import Attempts
from farm.ledger.jobs import Jobs
from farm.ledger.keyring import Keyring
from farm.ledger.records import ModelFacts, entry
from farm.listening import listen
from farm.local.server import EmbeddedServer
from farm.settings import load_settings

REPEATS = 5
BUSY = 16
TENANT = "bench"
PROMPT = "Once upon a time there was a farm with a model on it. " * 3
ASKED = {"prompt": PROMPT, "max_tokens": 64}
DONE_JOBS = 500


@dataclass(frozen=True)
class Cost:
    """What a request took: medians over some runs."""

    cpu_us: float
    per_s: float


def main() -> None:
    """Measure everything in one run."""
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer(Path(folder))
        server.start()
        try:
            found = requests(server)
            streams = rest_streams.measure(server)
        finally:
            server.stop()
    submit, alone, listed, get = found["submit"], found["submit_alone"], found["list"], found["get"]
    ratios = {
        "submit_cpu_over_lpush": submit.cpu_us / found["lpush"].cpu_us,
        "submit_alone_cpu_over_lpush": alone.cpu_us / found["lpush_alone"].cpu_us,
        "celery_cpu_over_submit": found["celery"].cpu_us / submit.cpu_us,
        "submit_per_s_over_celery": submit.per_s / found["celery"].per_s,
        "list_jobs_per_s_over_single": 100 * listed.per_s / alone.per_s,
        "list_jobs_per_s_over_busy_single": 100 * listed.per_s / submit.per_s,
        "get_cpu_over_fastapi_noop": get.cpu_us / found["fast_noop"].cpu_us,
        "get_cpu_over_raw_noop": get.cpu_us / found["raw_noop"].cpu_us,
    }
    finish(
        "rest",
        [
            *[(name, f"{cost.cpu_us:8,.0f} us CPU  {cost.per_s:9,.0f}/s") for name, cost in found.items()],
            ("submit over LPUSH, CPU", f"{ratios['submit_cpu_over_lpush']:.1f}x (goal at most 4x)"),
            ("the same, one client", f"{ratios['submit_alone_cpu_over_lpush']:.1f}x"),
            ("Celery over submit, CPU", f"{ratios['celery_cpu_over_submit']:.1f}x (goal 5x)"),
            ("submit over Celery, requests/s", f"{ratios['submit_per_s_over_celery']:.1f}x (goal 5x)"),
            ("list of 100 over single, jobs/s", f"{ratios['list_jobs_per_s_over_single']:.1f}x (goal 10x)"),
            ("the same, over busy single", f"{ratios['list_jobs_per_s_over_busy_single']:.1f}x"),
            ("GET over FastAPI no-op, CPU", f"{ratios['get_cpu_over_fastapi_noop']:.1f}x (goal at most 3x)"),
            ("the same, over raw ASGI no-op", f"{ratios['get_cpu_over_raw_noop']:.1f}x"),
            (
                f"{streams['streams']:,} streams, delay",
                f"p50 {streams['p50_ms']:.0f} ms, p95 {streams['p95_ms']:.0f} ms, p99 {streams['p99_ms']:.0f} ms "
                f"(goal p95 under 100 ms), {streams['events_per_s']:,.0f} events/s, {streams['cpu_share']:.0%} CPU",
            ),
        ],
        {
            "connections": BUSY,
            "cpu_us": {name: cost.cpu_us for name, cost in found.items()},
            "per_s": {name: cost.per_s for name, cost in found.items()},
            **ratios,
            "streams": streams,
        },
    )


@dataclass(frozen=True)
class Case:
    """Requests to send in turn to a server, over so many connections, so many in a round."""

    name: str
    port: int
    pid: int
    requests: list[bytes]
    connections: int
    count: int


def requests(server: EmbeddedServer) -> dict[str, Cost]:
    """What requests cost, ours and the others': all servers stand side by side, and take turns in each round."""
    settings = load_settings(redis={"url": server.url})
    jobs = Jobs(settings)
    facts = ModelFacts(settings.model.name, 2_048, 512, "bench", "")
    Attempts(jobs, "bench-1").register("bench", settings.model.name, 0, "model", facts)
    key = Keyring(jobs).create(TENANT).secret
    gets = [request("GET", f"/v1/jobs/{job_id}", key=key) for job_id in finished(jobs, DONE_JOBS)]
    one, hundred = request("POST", "/v1/jobs", ASKED, key), request("POST", "/v1/jobs", [ASKED] * 100, key)
    with (
        uvicorn("benchmarks.rest_apps:noop", server) as raw,
        uvicorn("benchmarks.rest_apps:fast", server) as fast,
        uvicorn("benchmarks.rest_apps:lpush", server) as push,
        api(server) as ours,
    ):
        found = compare(
            [
                Case("raw_noop", *raw, [request("GET", "/")], BUSY, 8_000),
                Case("fast_noop", *fast, [request("GET", "/noop")], BUSY, 4_000),
                Case("celery", *fast, [request("POST", "/jobs", ASKED)], BUSY, 400),
                Case("lpush", *push, [request("POST", "/", ASKED)], BUSY, 4_000),
                Case("lpush_alone", *push, [request("POST", "/", ASKED)], 1, 1_500),
                Case("submit", *ours, [one], BUSY, 3_000),
                Case("submit_alone", *ours, [one], 1, 1_000),
                Case("list", *ours, [hundred], 1, 100),
                Case("get", *ours, gets, BUSY, 3_000),
                Case("get_alone", *ours, gets, 1, 1_000),
            ]
        )
    jobs.client.flushall()
    jobs.client.close()
    return found


def compare(cases: list[Case]) -> dict[str, Cost]:
    """The cost of each case: medians over rounds in which all take turns, after a warm-up."""
    for case in cases:
        uvloop.run(_load(case.port, case.requests, case.connections, case.count // 4))
    rounds = [[cost(case) for case in cases] for _ in range(REPEATS)]
    return {
        case.name: Cost(
            statistics.median(turn[number].cpu_us for turn in rounds),
            statistics.median(turn[number].per_s for turn in rounds),
        )
        for number, case in enumerate(cases)
    }


def cost(case: Case) -> Cost:
    """CPU per request of the serving process, and requests per second."""
    server = psutil.Process(case.pid)
    before, start = server.cpu_times(), time.perf_counter()
    uvloop.run(_load(case.port, case.requests, case.connections, case.count))
    wall, after = time.perf_counter() - start, server.cpu_times()
    sent = case.count // case.connections * case.connections
    return Cost((after.user - before.user + after.system - before.system) / sent * 1e6, sent / wall)


def finished(jobs: Jobs, count: int) -> list[str]:
    """Jobs that have ended with 64 tokens each."""
    placed = [jobs.place(parse_request(ASKED), tenant=TENANT) for _ in range(count)]
    jobs.submit(placed)
    tokens = [entry(n, f" word{n}", None, None) for n in range(64)]
    with jobs.client.pipeline(transaction=False) as pipe:
        for job in placed:
            pipe.rpush(keys.out(job.id), *tokens)
            pipe.hset(keys.job(job.id), mapping={"state": "succeeded", "finish_reason": "length", "tail": "."})
        pipe.execute()
    return [job.id for job in placed]


@contextmanager
def uvicorn(app: str, server: EmbeddedServer) -> Iterator[tuple[int, int]]:
    """An app behind uvicorn: its port and process."""
    with listen("127.0.0.1", 0, "") as probe:
        port: int = probe.getsockname()[1]
    args = ["--port", str(port), "--loop", "uvloop", "--http", "httptools", "--ws", "none", "--no-proxy-headers"]
    args += ["--no-access-log", "--log-level", "error", "--lifespan", "on"]
    with process(["uvicorn", app, *args], {"REST_BENCH_URL": server.url}, port) as pid:
        yield port, pid


@contextmanager
def api(server: EmbeddedServer, **more: str) -> Iterator[tuple[int, int]]:
    """The REST API: its port and process."""
    with listen("127.0.0.1", 0, "") as probe:
        port: int = probe.getsockname()[1]
    env = {"FARM_REDIS__URL": server.url, "FARM_API__PORT": str(port), "FARM_LOGS__LEVEL": "ERROR", **more}
    with process(["api"], env, port) as pid:
        yield port, pid


@contextmanager
def process(module: list[str], env: dict[str, str], port: int) -> Iterator[int]:
    """A Python program, once its port answers."""
    child = subprocess.Popen([sys.executable, "-m", *module], env={**os.environ, **env})
    try:
        asyncio.run(_connected(port))
        yield child.pid
    finally:
        child.terminate()
        child.wait()


def request(method: str, path: str, body: object = None, key: str | None = None) -> bytes:
    """A request's bytes."""
    data = b"" if body is None else json.dumps(body).encode()
    head = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", f"content-length: {len(data)}"]
    head += ["content-type: application/json"] if data else []
    head += [f"authorization: Bearer {key}"] if key else []
    return "\r\n".join(head).encode() + b"\r\n\r\n" + data


async def _load(port: int, requests: list[bytes], connections: int, count: int) -> None:
    loop = asyncio.get_running_loop()
    each = count // connections
    clients = [_Client(requests, number * each, each, loop.create_future()) for number in range(connections)]
    for client in clients:
        await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.gather(*[client.done for client in clients])


class _Client(asyncio.Protocol):
    """One connection that sends request after request. Lean, for it shares the machine with what it measures."""

    def __init__(self, requests: list[bytes], start: int, count: int, done: asyncio.Future[None]) -> None:
        self.done = done
        self._requests = requests
        self._next = start
        self._left = count
        self._heard = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._heard += data
        head, found, body = self._heard.partition(b"\r\n\r\n")
        if not found:
            return
        at = head.index(b"content-length:") + 15
        if len(body) < int(head[at:].partition(b"\r\n")[0]):
            return
        if head[9:12] not in (b"200", b"202"):
            self.done.set_exception(ValueError(head))
            return
        self._heard = b""
        self._send()

    def _send(self) -> None:
        if self._left == 0:
            self._transport.close()
            self.done.set_result(None)
            return
        self._left -= 1
        self._transport.write(self._requests[self._next % len(self._requests)])
        self._next += 1


async def _connected(port: int) -> None:
    for _ in range(600):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise TimeoutError(f"nothing answers on port {port}")


if __name__ == "__main__":
    main()
