"""The tour: what the farm does, one idea each, with nothing but what ``from farm import`` offers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from farm import AsyncFarm, Farm, IdempotencyConflict, InvalidRequest, JobCancelled, JobNotFound
from farm.batch import run_batch


def test_a_prompt_is_completed(farm: Farm) -> None:
    """One call takes a prompt and returns its completion."""
    completion = farm.generate("Once upon a time", max_tokens=12)
    assert completion.text
    assert completion.finish_reason in ("length", "stop")
    assert 1 <= completion.usage.completion_tokens <= 12


def test_a_job_is_a_promise(farm: Farm) -> None:
    """submit returns at once; the job can be asked for its state, and waited for."""
    job = farm.submit("The cat", max_tokens=8)
    assert job.status().model == "tiny-bloom"
    completion = job.result(timeout=60)
    assert job.status().state == "succeeded"
    assert job.status().text == completion.text


def test_a_job_is_found_by_its_id(farm: Farm) -> None:
    """Another client, anywhere, takes a job up by its id."""
    job = farm.submit("The cat", max_tokens=8)
    with Farm(farm.settings) as elsewhere:
        assert elsewhere.job(job.id).result(timeout=60).text == job.result(timeout=60).text
        with pytest.raises(JobNotFound):
            elsewhere.job("no-such-job").status()


def test_text_streams_as_it_is_generated(farm: Farm) -> None:
    """A stream yields the text in pieces that make the whole."""
    job = farm.submit("The dog", max_tokens=24, ignore_eos=True)
    deltas = list(job.stream())
    assert "".join(delta.text for delta in deltas) == job.result(timeout=60).text
    assert deltas[-1].index == 24


def test_greedy_text_is_always_the_same(farm: Farm) -> None:
    """Without a temperature the likeliest text comes back, alone or in a crowd."""
    alone = farm.generate("The hen", max_tokens=12).text
    crowd = farm.map(["The hen"] + ["The old fox ran away because"] * 8, max_tokens=12)
    assert next(crowd).text == alone


def test_a_seed_makes_sampling_repeatable(farm: Farm) -> None:
    """The same seed samples the same text; samples of one prompt each have a seed of their own."""
    first = farm.generate("The hen", max_tokens=16, temperature=1.0, seed=7).text
    samples = [
        job.result(timeout=60).text
        for job in farm.submit_many(["The hen"], n=4, max_tokens=16, temperature=1.0, seed=7)
    ]
    assert samples[0] == first
    assert len(set(samples)) > 1


def test_map_answers_endless_prompts_in_order(farm: Farm) -> None:
    """map keeps order and a bounded number in flight."""
    prompts = (f"Animal number {number} was a" for number in itertools.count())
    results = list(itertools.islice(farm.map(prompts, max_tokens=4, window=8), 12))
    assert len(results) == 12


def test_as_completed_answers_in_the_order_of_ending(farm: Farm) -> None:
    """A short job is delivered before a long one that was submitted first."""
    long = farm.submit("The goat", max_tokens=1500, ignore_eos=True)
    short = farm.submit("The goat", max_tokens=2)
    assert [result.id for result in farm.as_completed([long, short])] == [short.id, long.id]


def test_a_job_can_be_cancelled(farm: Farm) -> None:
    """A cancelled job stops, and its error holds what was generated."""
    job = farm.submit("The goat", max_tokens=2_000, ignore_eos=True)
    first = next(iter(job.stream()))
    assert job.cancel() == "cancelled"
    with pytest.raises(JobCancelled) as cancelled:
        job.result(timeout=60)
    assert cancelled.value.job is not None
    assert cancelled.value.job.text.startswith(first.text)


def test_a_key_makes_submitting_twice_safe(farm: Farm) -> None:
    """Submitting again under the same key returns the same job; another prompt under it is refused."""
    job = farm.submit("The cow", max_tokens=4, idempotency_key="order-7")
    assert farm.submit("The cow", max_tokens=4, idempotency_key="order-7") == job
    with pytest.raises(IdempotencyConflict):
        farm.submit("The pig", max_tokens=4, idempotency_key="order-7")


def test_a_mistake_is_named(farm: Farm) -> None:
    """A bad request is refused before it is queued, and the error says what to do."""
    with pytest.raises(InvalidRequest, match=r"temperature: -1 is out of range; give at least 0"):
        farm.submit("The cow", temperature=-1.0)
    with pytest.raises(InvalidRequest, match=r"leaves no room for a prompt"):
        farm.submit("The cow", max_tokens=1_000_000)


def test_a_file_of_prompts_is_a_batch(farm: Farm, tmp_path: Path) -> None:
    """Lines of prompts become lines of answers; running it again finds nothing left to do."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    animals = ("cat", "dog", "hen")
    source.write_text(
        "".join(json.dumps({"custom_id": a, "prompt": f"The {a}", "max_tokens": 4}) + "\n" for a in animals)
    )
    assert run_batch(farm, source, target).succeeded == 3
    assert {json.loads(line)["custom_id"] for line in target.read_text().splitlines()} == set(animals)
    assert run_batch(farm, source, target).skipped == 3


async def test_the_same_names_await(farm: Farm) -> None:
    """AsyncFarm has the same names, awaitable."""
    async with AsyncFarm(farm.settings) as awaitable:
        job = await awaitable.submit("The owl", max_tokens=8)
        text = "".join([delta.text async for delta in job.stream()])
        assert (await job.result(timeout=60)).text == text
        assert [r.text async for r in awaitable.map(["The owl"] * 2, max_tokens=8)] == [text] * 2


async def test_a_running_farm_is_joined(farm: Farm) -> None:
    """Farm.local uses the local farm that runs already, and leaves it running."""
    with Farm.local(farm.settings) as same:
        assert same.settings.redis == farm.settings.redis
    async with AsyncFarm.local(farm.settings) as awaitable:
        assert (await awaitable.generate("The owl", max_tokens=2, timeout=60)).text
    assert farm.generate("The owl", max_tokens=2, timeout=60).text
