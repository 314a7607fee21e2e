"""The promise, with real workers and the real tiny-bloom: every line is answered once, whatever is killed meanwhile."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from farm import keys
from farm.ledger.jobs import Jobs
from tests.commands import FARM, environ
from tests.conftest import wait_until
from tests.integration.conftest import StartWorker
from tests.workers import WorkerProcess
from workers.tiny_bloom import PROMPTS

LINES = 240
MODEL = {"ENGINE__KIND": "bloom", "LEASE__LEASE_S": 2}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of 240 prompts, drawn from the bundled ones."""
    bundled = [json.loads(line)["prompt"] for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    path = tmp_path / "prompts.jsonl"
    lines = [{"custom_id": f"line-{i}", "prompt": bundled[i % len(bundled)], "max_tokens": 48} for i in range(LINES)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def _batch(jobs: Jobs, source: Path, target: Path) -> subprocess.Popen[bytes]:
    url = jobs.settings.redis.url
    assert url is not None
    return subprocess.Popen(
        [*FARM, "batch", str(source), "-o", str(target), "--json"],
        env=environ(REDIS__URL=url.get_secret_value()),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _answers(target: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()] if target.exists() else []


def _texts(target: Path) -> dict[str, str]:
    return {a["custom_id"]: a["response"]["body"]["choices"][0]["text"] for a in _answers(target)}


def _succeeded(jobs: Jobs) -> int:
    return int(jobs.client.hget(keys.TOTALS, "succeeded") or 0)  # type: ignore[arg-type]


def _with_tokens_aboard(jobs: Jobs, worker: WorkerProcess) -> int:
    """How many of the jobs that a worker holds have tokens in the ledger."""
    held = jobs.client.sscan_iter(keys.held(worker.id or ""))
    return sum(jobs.client.llen(keys.out(job_id)) > 0 for job_id in held)  # type: ignore[operator, misc]


def _stops_with_tokens_aboard(jobs: Jobs, worker: WorkerProcess) -> bool:
    """Stop the engine for good if some jobs are half done then: most end within one flush, so it is a matter of luck.

    Two flushes later whatever had ended is finished, and what had not has its tokens in the ledger.
    """
    worker.engine.suspend()
    for _ in range(2):
        seen = jobs.client.zscore(keys.WORKERS, worker.id or "")
        wait_until(lambda seen=seen: jobs.client.zscore(keys.WORKERS, worker.id or "") != seen, why="a flush")  # type: ignore[misc]
    if _with_tokens_aboard(jobs, worker) >= 3:
        return True
    worker.engine.resume()
    return False


def test_a_batch_survives_its_worker(jobs: Jobs, start_worker: StartWorker, source: Path) -> None:
    """When the worker is killed at half of a batch, another finishes it: each line answered once, some resumed, and
    every text as if nothing had happened."""
    doomed = start_worker("w1", **MODEL)
    target = source.with_name("answers.jsonl")
    batch = _batch(jobs, source, target)
    wait_until(lambda: _succeeded(jobs) >= LINES // 2 and doomed.held() > 4, why="half of the batch", timeout_s=90)
    wait_until(lambda: _stops_with_tokens_aboard(jobs, doomed), why="a job with tokens aboard")
    doomed.kill()
    start_worker("w2", **MODEL)
    assert batch.wait(120) == 0
    answers = _answers(target)
    assert Counter(answer["custom_id"] for answer in answers) == {f"line-{i}": 1 for i in range(LINES)}
    assert all(answer["error"] is None and answer["response"]["status_code"] == 200 for answer in answers)
    usages = [answer["response"]["body"]["usage"] for answer in answers]
    assert sum(usage["resumed_tokens"] > 0 for usage in usages) > 0
    texts = _texts(target)
    by_prompt: dict[str, set[str]] = {}
    for line in map(json.loads, source.read_text(encoding="utf-8").splitlines()):
        by_prompt.setdefault(line["prompt"], set()).add(texts[line["custom_id"]])
    assert all(len(different) == 1 for different in by_prompt.values()), "a resumed text differs from its twins"


def test_an_interrupted_batch_is_not_redone(jobs: Jobs, start_worker: StartWorker, source: Path) -> None:
    """A batch that is killed and run again completes, and no answered line is asked again."""
    start_worker("w1", **MODEL)
    target = source.with_name("answers.jsonl")
    first = _batch(jobs, source, target)
    wait_until(lambda: target.exists() and target.read_bytes().count(b"\n") >= LINES // 4, why="some answers")
    first.kill()
    first.wait()
    before = {answer["custom_id"]: answer["id"] for answer in _answers_of_whole_lines(target)}
    assert _batch(jobs, source, target).wait(120) == 0
    answers = _answers(target)
    assert Counter(answer["custom_id"] for answer in answers) == {f"line-{i}": 1 for i in range(LINES)}
    after = {answer["custom_id"]: answer["id"] for answer in answers}
    assert before.items() <= after.items()
    assert int(jobs.client.hget(keys.TOTALS, "submitted") or 0) == LINES  # type: ignore[arg-type]


def _answers_of_whole_lines(target: Path) -> list[dict[str, Any]]:
    whole = target.read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]
