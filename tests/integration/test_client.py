"""The Python client on a real server: submitting, waiting, streaming."""

from __future__ import annotations

import itertools
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from farm import (
    Farm,
    FarmError,
    IdempotencyConflict,
    InvalidRequest,
    Job,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobGone,
    JobNotFound,
    JobState,
    ServerUnreachable,
)
from farm.errors import PromptTooLong, SettingsError
from farm.ledger.records import ModelFacts
from farm.prompts import derived_seed
from farm.settings import load_settings
from tests.conftest import wait_until
from tests.farmhand import Farmhand, text_of


def test_a_prompt_is_answered(farm: Farm, hand: Farmhand) -> None:
    """A submitted prompt comes back as a completion."""
    completion = farm.submit("hello", max_tokens=5, metadata={"order": "7"}).result(timeout=20)
    assert completion.text == text_of("hello", 5)
    assert completion.usage.completion_tokens == 5
    assert completion.metadata == {"order": "7"}
    assert farm.generate("hello", max_tokens=5, timeout=20).text == completion.text


def test_a_result_can_be_had_anywhere_and_again(farm: Farm, hand: Farmhand) -> None:
    """Any client gets a job's result by its id, as often as it likes."""
    job = farm.submit("hello", max_tokens=5)
    assert job.result(timeout=20) == job.result(timeout=0)
    with Farm(farm.settings) as other:
        assert other.job(job.id) == job
        assert other.job(job.id).result(timeout=20).text == text_of("hello", 5)
        assert "".join(delta.text for delta in other.job(job.id).stream()) == text_of("hello", 5)


def test_a_timeout_leaves_the_job_running(farm: Farm) -> None:
    """result(timeout) raises TimeoutError, and a later call gets the result."""
    job = farm.submit("hello", max_tokens=5)
    with pytest.raises(TimeoutError, match=job.id):
        job.result(timeout=0.05)
    assert job.status().state is JobState.QUEUED
    assert job.status().position == 1
    with Farmhand(farm.settings):
        assert job.result(timeout=20).text == text_of("hello", 5)


def test_a_job_that_does_not_succeed_raises_its_reason(farm: Farm) -> None:
    """result and stream raise an error that names the reason and holds the job."""
    failing = farm.submit("bad", max_tokens=3)
    late = farm.submit("late", max_tokens=3, deadline_s=0.01)
    cancelled = farm.submit("cancelled", max_tokens=3)
    assert cancelled.cancel() is JobState.CANCELLED
    assert cancelled.cancel() is JobState.CANCELLED
    wait_until(lambda: time.time() > late.status().created_at + 0.05, why="the deadline")
    with Farmhand(farm.settings, fail_prompts=frozenset({"bad"})):
        for job, error, words in (
            (failing, JobFailed, "the model said no"),
            (late, JobExpired, "deadline"),
            (cancelled, JobCancelled, "cancelled"),
        ):
            with pytest.raises(error, match=words) as raised:
                job.result(timeout=20)
            assert raised.value.job is not None
            assert raised.value.job.id == job.id
            with pytest.raises(error, match=words):
                list(job.stream())
    done = failing.status()
    assert done.error is not None
    assert (done.error.code, done.text) == ("model_error", text_of("bad", 1)[:-1])


def test_unknown_jobs_and_gone_ones_are_told_apart(farm: Farm) -> None:
    """An id that never was is not found; one older than the retention is gone."""
    old = uuid.UUID(int=(int(time.time() - 2 * 86400) * 1000) << 80 | 0x7 << 76 | 0x2 << 62)
    for job, error in ((farm.job("no-such-job"), JobNotFound), (farm.job(str(old)), JobGone)):
        for call in (job.status, job.result, job.cancel, lambda job=job: list(job.stream())):
            with pytest.raises(error):
                call()


def test_a_cancelled_job_stops_its_waiters(farm: Farm) -> None:
    """Cancelling a running job wakes whoever waits for it, the partial text kept."""
    with Farmhand(farm.settings, tokens_per_beat=1), ThreadPoolExecutor() as pool:
        job = farm.submit("hello", max_tokens=1_000)
        waiting = pool.submit(job.result)
        stream = job.stream()
        first = next(stream)
        job.cancel()
        with pytest.raises(JobCancelled) as raised:
            waiting.result(timeout=20)
        assert raised.value.job is not None
        assert raised.value.job.text.startswith(first.text)
        with pytest.raises(JobCancelled):
            list(stream)


# Streams.


def test_a_stream_is_the_text_piece_by_piece(farm: Farm) -> None:
    """A stream's pieces make the whole text, with every token once and in order, from any index on."""
    with Farmhand(farm.settings, tokens_per_beat=3):
        job = farm.submit("hello", max_tokens=20)
        deltas = list(job.stream())
    assert len(deltas) > 2
    assert "".join(delta.text for delta in deltas) == text_of("hello", 20) == job.result(0).text
    assert [token for delta in deltas for token in delta.token_ids] == list(range(20))
    assert [delta.index for delta in deltas] == list(itertools.accumulate(len(delta.token_ids) for delta in deltas))
    for delta in deltas[:-1]:
        rest = list(job.stream(start=delta.index))
        assert [token for more in rest for token in more.token_ids] == list(range(delta.index, 20))
    with pytest.raises(InvalidRequest, match="start"):
        next(job.stream(start=-1))


def test_a_stream_survives_the_death_of_a_worker(farm: Farm) -> None:
    """When a worker dies half way, the stream goes on with another's tokens, without a gap or a repetition."""
    job = farm.submit("hello", max_tokens=40)
    first = Farmhand(farm.settings, name="first", tokens_per_beat=2, die_at=10).start()
    stream = job.stream()
    deltas = [next(stream)]
    wait_until(lambda: not first.is_alive, why="the first worker to die")
    with Farmhand(farm.settings, name="second", tokens_per_beat=2):
        deltas += stream
    first.die()
    assert [token for delta in deltas for token in delta.token_ids] == list(range(40))
    assert "".join(delta.text for delta in deltas) == text_of("hello", 40)
    completion = job.result(timeout=0)
    assert completion.attempt == 2
    assert completion.usage.resumed_tokens >= 10


# Many prompts.


def test_the_same_key_in_two_prompts_is_one_job(farm: Farm, hand: Farmhand) -> None:
    """map serves two prompts of one key from one job, and refuses only the one that differs."""
    one = {"prompt": "one", "idempotency_key": "k"}
    results = list(farm.map([one, "x", one, {**one, "prompt": "two"}], max_tokens=2, return_exceptions=True))
    assert results[0] == results[2]
    assert isinstance(results[3], IdempotencyConflict)
    assert not isinstance(results[1], FarmError)


# Submitting.


def test_a_key_makes_submitting_twice_harmless(farm: Farm, hand: Farmhand) -> None:
    """The same key and request give the same job; another request under the key is refused."""
    job = farm.submit("hello", max_tokens=5, idempotency_key="order-7")
    assert farm.submit("hello", max_tokens=5, idempotency_key="order-7") == job
    job.result(timeout=20)
    assert farm.submit("hello", max_tokens=5, idempotency_key="order-7") == job
    with pytest.raises(IdempotencyConflict, match="another idempotency key"):
        farm.submit("hello", max_tokens=6, idempotency_key="order-7")
    with Farm(farm.settings, tenant="another") as other:
        assert other.submit("hello", max_tokens=5, idempotency_key="order-7") != job
    with pytest.raises(InvalidRequest, match="idempotency_key"):
        farm.submit("hello", idempotency_key="")


def test_many_prompts_are_submitted_together(farm: Farm, hand: Farmhand) -> None:
    """submit_many takes texts, token ids and mappings, checks all of them first, and keeps their order."""
    jobs = farm.submit_many(["a", [1, 2, 3], {"prompt": "c", "max_tokens": 1}], max_tokens=2)
    assert [job.result(timeout=20).usage.completion_tokens for job in jobs] == [2, 2, 1]
    before = farm.ledger.client.dbsize()
    with pytest.raises(InvalidRequest, match=r"^prompts\[1\]\.temperature: -1"):
        farm.submit_many(["a", {"prompt": "b", "temperature": -1}])
    assert farm.ledger.client.dbsize() == before


def test_a_thousand_prompts_are_a_few_calls(farm: Farm, hand: Farmhand, client: redis.Redis) -> None:
    """submit_many asks for the model once and sends prompts by the hundred."""
    with Farm(farm.settings) as fresh:
        hand.die()
        client.config_resetstat()
        fresh.submit_many([f"p{n}" for n in range(1_000)], max_tokens=2)
    stats = client.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] == 10
    assert stats["cmdstat_hgetall"]["calls"] == 1


def test_samples_have_seeds_of_their_own(farm: Farm) -> None:
    """n samples are n jobs beside one another; a seed gives each its own, and keys stay distinct."""
    jobs = farm.submit_many([{"prompt": "a", "idempotency_key": "k"}, "b"], n=3, seed=7, temperature=1)
    again = farm.submit_many([{"prompt": "a", "idempotency_key": "k"}], n=3, seed=7, temperature=1)
    assert len({job.id for job in jobs}) == 6
    assert again == jobs[:3]
    keys = [f"{{farm}}:job:{job.id}" for job in jobs]
    seeds = [
        int(str(farm.ledger.client.hget(key, "request")).partition('"seed":')[2].split(",")[0].rstrip("}"))
        for key in keys
    ]
    assert seeds == [derived_seed(7, sample) for sample in range(3)] * 2
    assert seeds[0] == 7
    assert len(set(seeds)) == 3
    for n in (0, 1_000):
        with pytest.raises(InvalidRequest, match=r"n: .* out of range"):
            farm.submit_many(["a"], n=n)
    with pytest.raises(InvalidRequest, match="submit_many"):
        farm.submit("a", n=2)  # type: ignore[call-arg]


def test_bad_requests_are_refused_before_they_are_queued(farm: Farm, hand: Farmhand) -> None:
    """What the model can't do is known at submit: its name, its context, its vocabulary."""
    for params, words in (
        ({"prompt": ""}, "prompt: is empty"),
        ({"prompt": "x", "model": "bloom-7b1"}, "model: 'bloom-7b1' is not served here"),
        ({"prompt": "x", "temperature": -1.0}, "temperature"),
        ({"prompt": [1, 5_000]}, "token 5,000 is unknown"),
        ({"prompt": "x", "max_tokens": 2_048}, "2,048"),
        ({"prompt": "x", "idempotency_key": "\ud800"}, "idempotency_key: holds half a surrogate pair"),
        ({"prompt": [1] * 2_000, "max_tokens": 49}, "2,000 prompt tokens \\+ 49 max_tokens > 2,048"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            farm.submit(**params)
    assert farm.submit([1] * 2_000, max_tokens=48).result(timeout=20).usage.completion_tokens == 48
    assert not list(farm.ledger.client.scan_iter("{farm}:queue:*"))


def test_text_is_counted_where_the_tokenizer_is(farm: Farm, tmp_path: Path) -> None:
    """A text that may be too long is counted with the model's tokenizer; where there is none the worker decides."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = ModelFacts("tiny-bloom", 64, 1_000, "x", str(folder))
    with Farmhand(farm.settings, facts=facts):
        farm.submit("a " * 60, max_tokens=4)
        with pytest.raises(PromptTooLong, match="61 prompt tokens \\+ 4 max_tokens > 64"):
            farm.submit("a " * 61, max_tokens=4)
    elsewhere = ModelFacts("tiny-bloom", 64, 1_000, "x", str(folder / "gone" / "tokenizer.json"))
    with Farm(farm.settings) as fresh, Farmhand(farm.settings, facts=elsewhere):
        fresh.submit("a " * 61, max_tokens=4)


# One reader.


def test_a_client_without_a_server_says_so(tmp_path: Path) -> None:
    """Without a URL and a running local farm there is nothing to connect to; a dead address is named."""
    with pytest.raises(SettingsError, match="farm up"):
        Farm(load_settings({}, redis={"url": None}, local={"state_dir": tmp_path}))
    with Farm(url="redis://127.0.0.1:1/0") as farm:
        for call in (lambda: farm.submit("x"), farm.job("x").result, farm.job("x").status, farm.job("x").cancel):
            with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:1"):
                call()


def test_jobs_compare_by_id(farm: Farm) -> None:
    """Two handles of one job are one member of a set."""
    assert {farm.job("a"), farm.job("a"), farm.job("b")} == {Job(farm, "b"), Job(farm, "a")}
    assert repr(farm.job("a")) == "Job('a')"
