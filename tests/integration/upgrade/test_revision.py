"""No answer is made of two revisions of a model, whatever moment the model is changed at."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from farm import Farm
from farm.contracts import JobState, parse_request
from farm.errors import AnswerRestarted
from farm.ledger.attempts import Attempts, Claim
from farm.ledger.jobs import Jobs
from farm.results import JobView
from farm.settings import Settings
from tests.conftest import wait_until
from tests.farmhand import VOCAB, Farmhand, quick, text_of
from tests.integration.conftest import StartWorker, wait_for_all
from tests.integration.ledger.farmhand import FACTS, Field, Hand
from tests.integration.ledger.invariants import check
from tests.workers import WorkerProcess
from workers.engine.checkpoint import find_checkpoint

JOBS, TOKENS = 12, 300


def _hand(field: Field, name: str, revision: str) -> Hand:
    attempts = Attempts(field.jobs, f"{name}-1")
    attempts.register(name, FACTS.name, 4, "model", replace(FACTS, fingerprint=revision))
    return Hand(name, attempts, 4)


def test_tokens_of_another_revision_are_given_up(jobs: Jobs) -> None:
    """A job goes on from its tokens at a worker of their revision, and begins anew at one of another; its history and
    the totals say so, and its tenant pays for one answer."""
    field = Field(jobs)
    old, twin, new = _hand(field, "old", "aaaa"), _hand(field, "twin", "aaaa"), _hand(field, "new", "bbbb")
    [job] = field.submit(max_tokens=8)
    field.run(old, job)
    old.write(job, 4)
    old.release("drain", "drain", draining=True)
    field.run(twin, job)
    assert len(twin.runs[job].entries) == 4
    twin.release("drain", "drain", draining=True)
    field.run(new, job)
    assert new.runs[job].entries == []
    check(field)
    new.finish(job, 8)
    view = field.view(job)
    assert len(view.token_ids) == 8
    assert view.usage.resumed_tokens == 0
    assert [past.reason for past in view.history] == ["drain", "drain", "revision_changed", "finish"]
    assert field.client.hget("{farm}:totals", "restarted") == "1"
    check(field)


def test_a_claim_whose_answer_was_lost_begins_anew_once(jobs: Jobs) -> None:
    """The claim that gives tokens up may be made again; it answers the same, and nothing is given up twice."""
    field = Field(jobs)
    old, new = _hand(field, "old", "aaaa"), _hand(field, "new", "bbbb")
    [job] = field.submit(max_tokens=8)
    field.run(old, job)
    old.write(job, 4)
    old.release("drain", "drain", draining=True)
    [message] = field.dispatch()
    first = new.attempts.claim(message.id, message.number, "nonce")
    assert isinstance(first, Claim)
    before = field.dump()
    again = new.attempts.claim(message.id, message.number, "nonce")
    assert isinstance(again, Claim)
    assert replace(again, age_s=first.age_s) == first
    assert field.dump() == before


def _change_model(settings: Settings, farm: Farm, job_id: str, seen: int) -> Farmhand:
    """A worker dies once the job has some tokens. Returns the next one, not yet started: of another revision."""
    facts = replace(FACTS, vocab=VOCAB, tokenizer="")
    with Farmhand(
        settings, name="old", tokens_per_beat=1, die_at=seen, facts=replace(facts, fingerprint="aaaa")
    ) as old:
        wait_until(lambda: not old.is_alive, why="the old worker to die")
    assert len(farm.job(job_id).status().text) > 0
    return Farmhand(settings, name="new", facts=replace(facts, fingerprint="bbbb"))


def test_a_stream_is_told_that_its_answer_began_anew(jobs: Jobs, settings: Settings) -> None:
    """Who has read tokens that were given up gets an error and not another revision's tokens behind them; who waits for
    the result, or reads from the start, gets one whole answer."""
    with Farm(quick(settings)) as farm, ThreadPoolExecutor() as threads:
        job = farm.submit("hello", max_tokens=40)
        read: list[str] = []

        def follow() -> None:
            read.extend(delta.text for delta in job.stream())

        following, waiting = threads.submit(follow), threads.submit(job.result, 60)
        new = _change_model(farm.settings, farm, job.id, 10)
        wait_until(lambda: read, why="the stream to have read some")
        with new:
            with pytest.raises(AnswerRestarted, match="read it again"):
                following.result(60)
            assert waiting.result().text == text_of("hello", 40)
        assert "".join(delta.text for delta in job.stream()) == text_of("hello", 40)
        assert 0 < len("".join(read)) < len(text_of("hello", 40))


@pytest.fixture(scope="module")
def revisions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """tiny-bloom, and the same with other weights: two folders of one model name."""
    first = tmp_path_factory.mktemp("a") / "tiny-bloom"
    second = tmp_path_factory.mktemp("b") / "tiny-bloom"
    shutil.copytree(find_checkpoint("tiny-bloom").folder, first, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    shutil.copytree(first, second)
    generator = torch.Generator().manual_seed(7)
    weights = safetensors.torch.load_file(second / "model.safetensors")
    for name, weight in weights.items():
        if weight.dim() == 2:
            weights[name] = weight + 0.05 * weight.std() * torch.randn(weight.shape, generator=generator)
    safetensors.torch.save_file(weights, second / "model.safetensors", metadata={"format": "pt"})
    return first, second


def test_a_rolling_update_to_another_revision_mixes_no_answer(
    jobs: Jobs, start_worker: StartWorker, revisions: tuple[Path, Path]
) -> None:
    """Under load a worker of one revision is replaced by one of another: each answer is, to the last token, the answer
    of the revision that it names."""

    def ask() -> list[str]:
        placed = [
            jobs.place(
                parse_request({"prompt": f"Once upon a time number {i}", "max_tokens": TOKENS, "ignore_eos": True})
            )
            for i in range(JOBS)
        ]
        jobs.submit(placed)
        return [submission.id for submission in placed]

    def answers(ids: list[str]) -> list[JobView]:
        views = wait_for_all(jobs, ids)
        assert {view.state for view in views} == {JobState.SUCCEEDED}
        return views

    common = {"ENGINE__KIND": "bloom", "ENGINE__MAX_SLOTS": 4}
    first = start_worker("a", MODEL__ID=revisions[0], **common)
    by_first = answers(ask())
    start_worker("b", MODEL__ID=revisions[1], **common)
    ids = ask()
    wait_until(lambda: _held_midway(jobs, ids, first), why="the first worker to be in the middle of a job")
    first.process.terminate()
    mixed = answers(ids)
    by_second = answers(ask())
    fingerprints = [by_first[0].model_fingerprint, by_second[0].model_fingerprint]
    assert len(set(fingerprints)) == 2
    for view, one, other in zip(mixed, by_first, by_second, strict=True):
        assert one.token_ids != other.token_ids, "the revisions can't be told apart"
        whole = one if view.model_fingerprint == fingerprints[0] else other
        assert view.token_ids == whole.token_ids, [past.reason for past in view.history]
    assert any("revision_changed" in [past.reason for past in view.history] for view in mixed), "nothing was moved"


def _held_midway(jobs: Jobs, ids: list[str], worker: WorkerProcess) -> bool:
    """Stop a worker's engine if it is in the middle of a job, so that it still is when the worker is told to end."""
    if not _has_run(jobs, ids, worker.name):
        return False
    worker.engine.suspend()
    if _has_run(jobs, ids, worker.name):
        return True
    worker.engine.resume()
    return False


def _has_run(jobs: Jobs, ids: list[str], name: str) -> bool:
    """Whether this worker has generated some tokens of a job that it still runs."""
    views = [view for view in jobs.views(ids) if view is not None]
    return any(
        view.state is JobState.RUNNING and (view.worker or "").startswith(f"{name}.") and len(view.token_ids) > 5
        for view in views
    )
