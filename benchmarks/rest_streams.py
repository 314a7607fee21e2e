"""A thousand open event streams in one process: how long a token takes from its worker's write to its client.

Thirty-two workers of 32 slots each write tokens of 1,000 running jobs every flush, as real ones do; each token's text
is the moment of its write, so that a client can tell how old it is (one clock for all processes of a machine). Workers
and clients are processes of their own.
"""

from __future__ import annotations

import asyncio
import json
import select
import subprocess
import sys
import time
from functools import partial
from typing import Any

import psutil
import redis
import uvloop

from farm.contracts import parse_request
from farm.ledger.attempts import Advance, Attempts, Claim
from farm.ledger.jobs import Jobs
from farm.ledger.records import ModelFacts, entry
from farm.ledger.upkeep import Upkeep
from farm.local.server import EmbeddedServer
from farm.settings import load_settings

STREAMS = 1_000
WORKERS = 32
SLOTS = 32
TOKENS_PER_FLUSH = 2
SECONDS = 12.0
WARM_S = 2.0


def measure(server: EmbeddedServer) -> dict[str, Any]:
    """Run workers, API and clients. Returns delays in milliseconds over the worker's write."""
    from benchmarks.rest import api  # it imports this module

    settings = load_settings(redis={"url": server.url})
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    with api(server, FARM_API__KEYS="local") as (port, pid):
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.rest_streams", server.url], stdout=subprocess.PIPE, stdin=subprocess.PIPE
        )
        try:
            assert child.stdout is not None
            assert child.stdin is not None
            ids = json.loads(child.stdout.readline())
            process = psutil.Process(pid)
            delays, share = uvloop.run(_listen(port, ids, child.stdin, process))
        finally:
            child.kill()
            child.wait()
    delays.sort()
    flush_s = settings.lease.flush_s
    return {
        "streams": len(ids),
        "events_per_s": len(delays) / (SECONDS - WARM_S),
        "expected_events_per_s": len(ids) / flush_s,
        "p50_ms": delays[len(delays) // 2] * 1e3,
        "p95_ms": delays[int(len(delays) * 0.95)] * 1e3,
        "p99_ms": delays[int(len(delays) * 0.99)] * 1e3,
        "cpu_share": share,
    }


class _Stream(asyncio.Protocol):
    """One client: notes how old the last token of each event is."""

    def __init__(self, job_id: str, delays: list[float]) -> None:
        self._path = f"/v1/jobs/{job_id}/events"
        self._delays = delays

    def connection_made(self, transport: Any) -> None:
        transport.write(f"GET {self._path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        at = data.rfind(b"@")
        if at >= 0:
            self._delays.append(now - float(data[at + 1 : data.index(b"!", at)]))


async def _listen(port: int, ids: list[str], workers: Any, process: psutil.Process) -> tuple[list[float], float]:
    delays: list[float] = []
    loop = asyncio.get_running_loop()
    for job_id in ids:
        await loop.create_connection(partial(_Stream, job_id, delays), "127.0.0.1", port)
    workers.write(b"go\n")
    workers.flush()
    await asyncio.sleep(WARM_S)
    delays.clear()
    before, start = process.cpu_times(), time.monotonic()
    await asyncio.sleep(SECONDS - WARM_S)
    after = process.cpu_times()
    share = (after.user - before.user + after.system - before.system) / (time.monotonic() - start)
    return list(delays), share


def work(url: str) -> None:
    """Claim a thousand jobs, then write tokens of all of them every flush until killed."""
    settings = load_settings(redis={"url": url})
    jobs = Jobs(settings)
    facts = ModelFacts(settings.model.name, 1_000_000, 512, "bench", "")
    hands = [Attempts(jobs, f"bench-{number}") for number in range(WORKERS)]
    for number, hand in enumerate(hands):
        hand.register(f"bench{number}", settings.model.name, SLOTS, "model", facts)
    placed = [jobs.place(parse_request({"prompt": f"prompt {n}", "max_tokens": 1_000_000})) for n in range(STREAMS)]
    jobs.submit(placed)
    claims: list[list[Claim]] = [[] for _ in hands]
    upkeep, claimed = Upkeep(jobs), 0
    while claimed < STREAMS:
        for hand, held in zip(hands, claims, strict=True):
            hand.progress([Advance(claim.id, claim.nonce, 0, []) for claim in held], SLOTS)
        for message in upkeep.dispatch().messages:
            number = claimed % WORKERS
            claim = hands[number].claim(message.id, message.number)
            assert isinstance(claim, Claim), claim
            claims[number].append(claim)
            claimed += 1
    print(json.dumps([job.id for job in placed]), flush=True)
    _write(hands, claims, settings.lease.flush_s)


def _write(hands: list[Attempts], claims: list[list[Claim]], flush_s: float) -> None:
    index = 0
    is_reading = False
    start = time.monotonic()
    while True:
        for number, (hand, held) in enumerate(zip(hands, claims, strict=True)):
            # Workers flush at their own times: evenly spread over the interval.
            time.sleep(max(0.0, start + flush_s * number / WORKERS - time.monotonic()))
            text = f"@{time.monotonic():.6f}!"
            entries = [entry(7, text, None, None)] * TOKENS_PER_FLUSH if is_reading else []
            hand.progress([Advance(claim.id, claim.nonce, index, entries) for claim in held], SLOTS)
        index += TOKENS_PER_FLUSH if is_reading else 0
        is_reading = is_reading or _is_told()
        start = max(start + flush_s, time.monotonic() - flush_s)


def _is_told() -> bool:
    return bool(select.select([sys.stdin], [], [], 0)[0])


if __name__ == "__main__":
    work(sys.argv[1])
