"""Whoever waits rides through it: real workers are killed and the server is killed and started again meanwhile."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from farm import AsyncFarm, Farm, keys
from farm.ledger.jobs import Jobs
from farm.local.server import EmbeddedServer
from farm.settings import Settings, load_settings
from tests.commands import FARM, environ
from tests.conftest import wait_until
from tests.workers import WorkerProcess

pytestmark = pytest.mark.alone

LONG, SHORT, MANY = 150, 20, 25
QUICK = {"LEASE__LEASE_S": 2, "ENGINE__MAX_SLOTS": 8, "ENGINE__SYNTHETIC_STEP_S": 0.02}


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server of one's own, to kill, as ``farm up`` has it."""
    server = EmbeddedServer(tmp_path / "server")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def settings(mortal: EmbeddedServer) -> Settings:
    return load_settings(redis={"url": mortal.url}, lease={"lease_s": 2})


@pytest.fixture
def jobs(settings: Settings) -> Iterator[Jobs]:
    ledger = Jobs(settings)
    yield ledger
    ledger.client.close()


@pytest.fixture
def start_worker(jobs: Jobs, tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    started: list[WorkerProcess] = []

    def start(name: str, **more: object) -> WorkerProcess:
        started.append(WorkerProcess(jobs, tmp_path, name, **{**QUICK, **more}))  # type: ignore[arg-type]
        return started[-1].wait_ready()

    yield start
    for worker in started:
        worker.kill()


def prompts(kind: str) -> list[str]:
    return [f"{kind} prompt number {number}" for number in range(MANY)]


def in_threads(farm: Farm, pool: ThreadPoolExecutor) -> dict[str, Future[Any]]:
    """One waiter of each kind."""

    def stream() -> list[int]:
        job = farm.submit("stream me", max_tokens=LONG)
        tokens = [token for delta in job.stream() for token in delta.token_ids]
        assert tokens == job.result(60).token_ids
        return tokens

    def mapped() -> list[list[int]]:
        return [result.token_ids for result in farm.map(prompts("map"), max_tokens=SHORT, window=8)]

    def completed() -> dict[str, list[int]]:
        asked = [{"prompt": prompt, "metadata": {"prompt": prompt}} for prompt in prompts("any")]
        results = list(farm.as_completed(asked, max_tokens=SHORT, window=8))
        assert len(results) == MANY
        return {result.metadata["prompt"]: result.token_ids for result in results}

    return {
        "stream": pool.submit(stream),
        "result": pool.submit(lambda: farm.submit("wait for me", max_tokens=LONG).result(120).token_ids),
        "map": pool.submit(mapped),
        "as_completed": pool.submit(completed),
    }


async def in_a_loop(settings: Settings) -> dict[str, Any]:
    """The same with asyncio."""
    async with AsyncFarm(settings) as farm:

        async def stream() -> list[int]:
            job = await farm.submit("stream me", max_tokens=LONG)
            tokens = [token async for delta in job.stream() for token in delta.token_ids]
            assert tokens == (await job.result(60)).token_ids
            return tokens

        async def result() -> list[int]:
            return (await (await farm.submit("wait for me", max_tokens=LONG)).result(120)).token_ids

        async def mapped() -> list[list[int]]:
            return [result.token_ids async for result in farm.map(prompts("map"), max_tokens=SHORT, window=8)]

        async def completed() -> dict[str, list[int]]:
            asked = [{"prompt": prompt, "metadata": {"prompt": prompt}} for prompt in prompts("any")]
            results = [result async for result in farm.as_completed(asked, max_tokens=SHORT, window=8)]
            assert len(results) == MANY
            return {result.metadata["prompt"]: result.token_ids for result in results}

        answers = await asyncio.gather(stream(), result(), mapped(), completed())
    return dict(zip(("stream", "result", "map", "as_completed"), answers, strict=True))


def ended(jobs: Jobs) -> int:
    return int(jobs.client.hget(keys.TOTALS, "succeeded") or 0)  # type: ignore[arg-type]


def test_all_who_wait_ride_through_deaths_and_restarts(
    settings: Settings, jobs: Jobs, mortal: EmbeddedServer, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """Streams, results, maps and a batch get every token once, whatever is killed meanwhile."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [{"custom_id": prompt, "prompt": prompt, "max_tokens": SHORT} for prompt in prompts("map")]
    source.write_text("".join(json.dumps({**line, "return_token_ids": True}) + "\n" for line in lines))
    doomed = [start_worker("w1"), start_worker("w2")]
    with Farm(settings) as farm, ThreadPoolExecutor() as pool:
        command = [*FARM, "batch", str(source), "-o", str(target), "--json"]
        batch = subprocess.Popen(command, env=environ(REDIS__URL=mortal.url), stdout=subprocess.DEVNULL)
        waiting = in_threads(farm, pool)
        looping = pool.submit(lambda: asyncio.run(in_a_loop(settings)))
        wait_until(lambda: ended(jobs) >= MANY, why="some jobs to end")
        doomed[0].kill()
        start_worker("w3")
        mortal.kill()
        mortal.start()
        wait_until(lambda: ended(jobs) >= 2 * MANY, why="more jobs to end", timeout_s=60)
        doomed[1].kill()
        mortal.kill()
        mortal.start()
        start_worker("w1")
        answers = {name: one.result(timeout=120) for name, one in waiting.items()}
        again = looping.result(timeout=120)
        assert batch.wait(timeout=120) == 0
        expected = {prompt: farm.generate(prompt, max_tokens=SHORT).token_ids for prompt in prompts("map")[:5]}
    assert again == answers
    assert len(answers["stream"]) == len(answers["result"]) == LONG
    assert [len(tokens) for tokens in answers["map"]] == [SHORT] * MANY
    assert dict(zip(prompts("map")[:5], answers["map"], strict=False)) == expected
    lines = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == MANY
    batched = {line["custom_id"]: line["response"]["body"]["choices"][0]["token_ids"] for line in lines}
    assert [batched[prompt] for prompt in prompts("map")] == answers["map"]
    assert int(jobs.client.hget(keys.TOTALS, "released:lease_ended") or 0) > 0, "nobody had anything to ride through"  # type: ignore[arg-type]
