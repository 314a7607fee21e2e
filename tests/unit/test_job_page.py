"""One job on a page, as ``farm status JOB`` and ``farm dead show JOB`` print it."""

from __future__ import annotations

import time

import pytest

from farm.cli import output
from farm.cli.job_page import show_job
from farm.contracts import JobState
from farm.results import AttemptRecord, JobError, JobView, Timings, Usage

pytestmark = pytest.mark.fast

NOON = time.mktime((2026, 3, 14, 12, 0, 0, 0, 0, -1))
WORKER = "farm-worker-7d9f8b6c5-x2x4q-1.9a8b7c6d"


def view(**more: object) -> JobView:
    """A job on its third attempt, which was dead in between."""
    history = [
        AttemptRecord(1, WORKER, NOON, NOON + 62, "lease_ended", 120),
        AttemptRecord(2, "barn.1", NOON + 90_000, NOON + 90_002, "engine_died", 0),
        AttemptRecord(2, "", NOON + 90_100, NOON + 90_100, "retried_by_hand", 0),
    ]
    values: dict[str, object] = {
        "id": "01a20774-6759-7ca8-9d0c-65fb7242081f",
        "state": JobState.RUNNING,
        "model": "bloom-7b1",
        "priority": "normal",
        "tenant": "acme",
        "created_at": NOON - 1,
        "started_at": NOON,
        "finished_at": None,
        "attempt": 3,
        "strikes": 0,
        "text": "Once",
        "token_ids": [1] * 150,
        "finish_reason": None,
        "usage": Usage(7, 150, 120),
        "timings": Timings(1.0, 2.0),
        "worker": "mill.2",
        "model_fingerprint": None,
        "error": None,
        "history": history,
        "metadata": {},
        "wants_token_ids": False,
        "claimed_at": NOON + 90_200,
    }
    return JobView(**{**values, **more})  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As wide as the narrowest usual terminal."""
    monkeypatch.setattr(output, "PIPE_WIDTH", 80)


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_every_attempt_is_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    """Who had it, when, for how long, what it gave and why it ended; the date only where it is another day."""
    show_job(view())
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    found = rows(out)
    first = next(row for row in found if row[:1] == ["1"])
    assert first[2:] == ["12:00:00", "1", "min", "2", "s", "120", "lease", "ended"]
    assert ["2", "barn.1", "03-15", "13:00:00", "2.0", "s", "0", "engine", "died"] in found
    assert ["03-15", "13:01:40", "retried", "by", "hand"] in found
    running = next(row for row in found if row[:2] == ["3", "mill.2"])
    assert running[2:4] == ["03-15", "13:03:20"]
    assert running[-2:] == ["30", "running"]


def test_a_dead_job_says_how_it_died(capsys: pytest.CaptureFixture[str]) -> None:
    """Strikes, losses and the reason are told in words."""
    error = JobError("job_dead", "its worker or engine died 10 times in a row")
    show_job(view(state=JobState.DEAD, losses=10, strikes=1, error=error, finished_at=NOON + 90_300))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "running" not in out
    for words in ("dead", "1: lost so often", "10: lost so often in a row", "died 10 times in a row"):
        assert words in out


def test_a_job_that_never_ran_has_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Before its first attempt there is nothing to list."""
    show_job(view(state=JobState.QUEUED, history=[], attempt=0, started_at=None, claimed_at=None, worker=None))
    assert "attempt" not in capsys.readouterr().out
