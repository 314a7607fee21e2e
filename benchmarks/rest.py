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

import psutil
import uvloop

from benchmarks import rest_streams
from benchmarks.report import finish
from farm import keys
from farm.contracts import parse_request
from farm.ledger.attempts import Attempts
from farm.ledger.jobs import Jobs, ModelFacts, entry
from farm.ledger.keyring import Keyring
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
    lpush, noop, fast, raw = found["lpush"], found["fast_noop"], found["celery"], found["raw_noop"]
    submit, alone, listed, get = found["submit"], found["submit_alone"], found["list"], found["get"]
    ratios = {
        "submit_cpu_times_lpush": submit.cpu_us / lpush.cpu_us,
        "submit_alone_cpu_times_lpush": alone.cpu_us / found["lpush_alone"].cpu_us,
        "submit_per_s_times_celery": submit.per_s / fast.per_s,
        "list_jobs_per_s_times_single": 100 * listed.per_s / alone.per_s,
        "list_jobs_per_s_times_busy_single": 100 * listed.per_s / submit.per_s,
        "get_cpu_times_fastapi_noop": get.cpu_us / noop.cpu_us,
        "get_cpu_times_raw_noop": get.cpu_us / raw.cpu_us,
    }
    finish(
        "rest",
        [
            *[(name, f"{cost.cpu_us:8,.0f} us CPU  {cost.per_s:9,.0f}/s") for name, cost in found.items()],
            ("submit, CPU over LPUSH", f"{ratios['submit_cpu_times_lpush']:.1f}x (goal at most 4x)"),
            ("the same, one client", f"{ratios['submit_alone_cpu_times_lpush']:.1f}x"),
            ("submit, requests/s over Celery", f"{ratios['submit_per_s_times_celery']:.1f}x (goal 5x)"),
            ("list of 100, jobs/s over single", f"{ratios['list_jobs_per_s_times_single']:.1f}x (goal 10x)"),
            ("the same, over busy single", f"{ratios['list_jobs_per_s_times_busy_single']:.1f}x"),
            ("GET finished, CPU over FastAPI no-op", f"{ratios['get_cpu_times_fastapi_noop']:.1f}x (goal at most 3x)"),
            ("the same, over raw ASGI no-op", f"{ratios['get_cpu_times_raw_noop']:.1f}x"),
            (
                f"{streams['streams']:,} streams, delay",
                f"p50 {streams['p50_ms']:.0f} ms, p95 {streams['p95_ms']:.0f} ms, p99 {streams['p99_ms']:.0f} ms "
                f"(goal p95 under 100 ms); {streams['events_per_s']:,.0f} events/s, {streams['cpu_share']:.0%} CPU",
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


def requests(server: EmbeddedServer) -> dict[str, Cost]:
    """What requests cost, ours and the others'."""
    settings = load_settings(redis={"url": server.url})
    jobs = Jobs(settings)
    facts = ModelFacts(settings.model.name, 2_048, 512, "bench", "")
    Attempts(jobs, "bench-1").register("bench", settings.model.name, 0, "model", facts)
    key = Keyring(jobs).create(TENANT).secret
    done = finished(jobs, DONE_JOBS)
    found = {}
    with uvicorn("benchmarks.rest_apps:noop", server) as (port, pid):
        found["raw_noop"] = cost(port, pid, [request("GET", "/")], BUSY, 8_000)
    with uvicorn("benchmarks.rest_apps:fast", server) as (port, pid):
        found["fast_noop"] = cost(port, pid, [request("GET", "/noop")], BUSY, 4_000)
        found["celery"] = cost(port, pid, [request("POST", "/jobs", ASKED)], BUSY, 400)
    with uvicorn("benchmarks.rest_apps:lpush", server) as (port, pid):
        found["lpush"] = cost(port, pid, [request("POST", "/", ASKED)], BUSY, 4_000)
        found["lpush_alone"] = cost(port, pid, [request("POST", "/", ASKED)], 1, 1_500)
    with api(server) as (port, pid):
        found["submit"] = cost(port, pid, [request("POST", "/v1/jobs", ASKED, key)], BUSY, 3_000)
        found["submit_alone"] = cost(port, pid, [request("POST", "/v1/jobs", ASKED, key)], 1, 1_000)
        found["list"] = cost(port, pid, [request("POST", "/v1/jobs", [ASKED] * 100, key)], 1, 100)
        gets = [request("GET", f"/v1/jobs/{job_id}", key=key) for job_id in done]
        found["get"] = cost(port, pid, gets, BUSY, 3_000)
        found["get_alone"] = cost(port, pid, gets, 1, 1_000)
    jobs.client.flushall()
    jobs.client.close()
    return found


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


def cost(port: int, pid: int, requests: list[bytes], connections: int, count: int) -> Cost:
    """CPU per request of the serving process, and requests per second: medians of some runs after a warm-up."""
    server = psutil.Process(pid)
    uvloop.run(_load(port, requests, connections, count // 4))
    costs, rates = [], []
    for _ in range(REPEATS):
        before, start = server.cpu_times(), time.perf_counter()
        uvloop.run(_load(port, requests, connections, count))
        wall, after = time.perf_counter() - start, server.cpu_times()
        sent = count // connections * connections
        costs.append((after.user - before.user + after.system - before.system) / sent * 1e6)
        rates.append(sent / wall)
    return Cost(statistics.median(costs), statistics.median(rates))


async def _load(port: int, requests: list[bytes], connections: int, count: int) -> None:
    await asyncio.gather(*[_client(port, requests, number, count // connections) for number in range(connections)])


async def _client(port: int, requests: list[bytes], number: int, count: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    for turn in range(count):
        writer.write(requests[(number * count + turn) % len(requests)])
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith((b"http/1.1 200", b"http/1.1 202")), head
        at = head.index(b"content-length:") + 15
        await reader.readexactly(int(head[at : head.index(b"\r\n", at)]))
    writer.close()


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
