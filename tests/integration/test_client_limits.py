"""Clients within limits: what waits, what is refused, what a tenant sees of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from farm import AsyncFarm, DeadlineUnmeetable, ExceedsQuota, Farm, FarmError, QuotaExceeded, keys
from farm.batch import run_batch
from farm.ledger.jobs import Jobs
from farm.ledger.tenants import Tenants
from farm.results import Completion
from farm.settings import Settings
from tests.farmhand import Farmhand, quick, text_of


@pytest.fixture
def farm(settings: Settings, jobs: Jobs) -> Iterator[Farm]:
    """A client of tenant ann of the emptied server."""
    with Farm(quick(settings), tenant="ann") as client:
        yield client


def test_a_map_waits_for_room_in_its_queue(farm: Farm) -> None:
    """A tenant that may queue 20 jobs maps 300 prompts all the same: the map submits as jobs start to run."""
    Tenants(farm.ledger).change("ann", limits={"queued_jobs": 20})
    prompts = [f"p{number}" for number in range(300)]
    with Farmhand(farm.settings, capacity=8):
        texts = [completion.text for completion in farm.map(prompts, max_tokens=2)]
    assert texts == [text_of(prompt, 2) for prompt in prompts]


def test_a_batch_waits_for_room_in_its_queue(farm: Farm, tmp_path: Path) -> None:
    """Every line of a batch is answered, and one that never fits gets an error in its place."""
    Tenants(farm.ledger).change("ann", limits={"queued_tokens": 100})
    lines = [json.dumps({"prompt": "p", "max_tokens": tokens}) for tokens in (40, 60, 200, 50, 70)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    with Farmhand(farm.settings, capacity=8):
        report = run_batch(farm, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert (report.succeeded, report.failed) == (4, 1)


def test_a_full_queue_refuses_a_single_job_at_once(farm: Farm) -> None:
    """submit does not wait: the caller is told, with a time to ask again, and nothing was written."""
    Tenants(farm.ledger).change("ann", limits={"queued_jobs": 2})
    farm.submit_many(["a", "b"])
    with pytest.raises(QuotaExceeded) as error:
        farm.submit("c")
    assert error.value.retry_after_s >= 1
    with pytest.raises(ExceedsQuota):
        farm.submit_many(["c", "d", "e"])
    assert len(list(farm.jobs())) == 2


def test_a_map_delivers_what_is_too_late_in_its_place(farm: Farm) -> None:
    """A prompt whose deadline can't be met is an error among completions, and keeps nobody else from an answer."""
    with Farmhand(farm.settings, capacity=1):
        assert len(list(farm.map([f"p{number}" for number in range(12)], max_tokens=2))) == 12
        # As if those had taken a minute each.
        farm.ledger.client.hset(keys.rate("tiny-bloom"), "slot_ms", 12 * 60_000)
        prompts = [{"prompt": "a"}, {"prompt": "b", "deadline_s": 5}, {"prompt": "c"}]
        results: list[Completion | FarmError] = list(farm.map(prompts, max_tokens=2, return_exceptions=True))
    first, second, third = results
    assert isinstance(first, Completion)
    assert isinstance(second, DeadlineUnmeetable)
    assert isinstance(third, Completion)
    assert "deadline_s: the answer would take about" in str(second)


async def test_a_tenant_sees_its_jobs_and_its_usage(farm: Farm, settings: Settings) -> None:
    """jobs and usage tell a client of its own tenant, awaited or not."""
    with Farmhand(farm.settings):
        done = [completion.id for completion in farm.map(["a", "b", "c"], max_tokens=4)]
    waiting = farm.submit("d")
    with Farm(farm.settings, tenant="ben") as other:
        other.submit("e")
    assert [view.id for view in farm.jobs()] == [waiting.id, *reversed(done)]
    assert [view.id for view in farm.jobs(state="succeeded", limit=2)] == done[:0:-1]
    [today] = farm.usage()
    assert (today.tenant, today.jobs, today.succeeded, today.completion_tokens) == ("ann", 3, 3, 12)
    async with AsyncFarm(farm.settings, tenant="ann") as client:
        assert [view.id async for view in client.jobs()] == [waiting.id, *reversed(done)]
        assert await client.usage(days=1) == [today]
