"""What farm top draws, from readings made up here."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from farm.cli.top_page import Screen, draw, sparkline
from farm.ledger.glance import Ended, Glance, Paces
from farm.ledger.overview import ModelLoad, Overview, WorkerView

JOB = "01980000-0000-7000-8000-00000000000"


def _worker(number: int, tokens: int, **changes: object) -> WorkerView:
    fields = {
        "id": f"w{number}.a",
        "name": f"w{number}",
        "role": "model",
        "model": "tiny-bloom",
        "slots": 32,
        "held": 8,
    }
    state = {"tokens": tokens, "is_draining": False, "is_alive": True, "trouble": "", "silent_s": 0.0, "up_s": 9000.0}
    return WorkerView(**{**fields, **state, **changes})  # type: ignore[arg-type]


def _glance(at: float, workers: list[WorkerView], models: int = 1, jobs: int = 100, **totals: int) -> Glance:
    loads = [
        ModelLoad(f"model-{n}", {"high": 1, "normal": 20_000, "low": 3}, 4, 5, 6, 64, 1.5, 321.0) for n in range(models)
    ]
    recent = [
        Ended(f"{JOB}{n % 10}", "succeeded", "tiny-bloom", "high", "ann", 64, 0.5, 61.0, "w1", at) for n in range(jobs)
    ]
    return Glance(at, Overview(loads, workers, totals), totals.get("dead", 0), recent)


def _lines(seen: Glance, width: int, height: int, earlier: Glance | None = None, problem: str = "") -> list[str]:
    paces = Paces()
    for reading in (earlier, seen):
        if reading is not None:
            paces.see(reading)
    screen = Screen("127.0.0.1:6379", seen, paces, [1.0, 2.0] * 300, [5.0] * 300, problem)
    out = io.StringIO()
    Console(file=out, width=width, height=height, force_terminal=False).print(draw(screen, width, height))
    return out.getvalue().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (140, 40), (200, 60)])
@pytest.mark.parametrize(("models", "workers"), [(1, 3), (6, 40), (1, 0)])
def test_it_fits(width: int, height: int, models: int, workers: int) -> None:
    """However large the farm, the picture has no more lines and columns than the terminal; the last line is there."""
    seen = _glance(100.0, [_worker(n, 0) for n in range(workers)], models, dead=3, succeeded=10)
    lines = _lines(seen, width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert lines[-1].strip() == "q quits"
    assert "3 dead" in "\n".join(lines)
    if workers == 40:
        assert "more workers" in "\n".join(lines)


@pytest.mark.parametrize("width", [56, 60, 79])
def test_a_narrow_terminal_has_fewer_columns(width: int) -> None:
    """Below 80 columns there are fewer of a table, and none of those is cut: a job's id can still be copied."""
    lines = _lines(_glance(100.0, [_worker(1, 0)], succeeded=10), width, 24)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "…" not in text.split("ended  ")[0]
    assert f"{JOB}0  succeeded" in text
    assert "20,013" in text  # of all priorities, delayed and sent


def test_a_tiny_terminal_is_no_error() -> None:
    """A terminal of a few lines gets what fits."""
    assert _lines(_glance(100.0, [_worker(1, 0)]), 20, 5)


def test_paces_are_differences() -> None:
    """Tokens per second are what workers wrote between two readings; one that came meanwhile counts from nothing."""
    earlier = _glance(100.0, [_worker(1, 1_000)], succeeded=10)
    later = _glance(102.0, [_worker(1, 1_500), _worker(2, 300)], succeeded=14)
    paces = Paces()
    paces.see(earlier)
    assert (paces.tokens_per_s, paces.jobs_per_s, paces.workers) == (0, 0, {})
    paces.see(later)
    assert paces.workers == {"w1.a": 250, "w2.a": 150}
    assert (paces.tokens_per_s, paces.jobs_per_s) == (400, 2)
    text = "\n".join(_lines(later, 80, 24, earlier))
    assert "tokens/s       400" in text
    assert "2.0 jobs/s" in text


def test_old_readings_leave_the_pace() -> None:
    """A pace is that of the last five seconds: a farm that stopped shows none soon after."""
    paces = Paces()
    for at, tokens in ((0, 0), (1, 900), (2, 900), (6, 900), (7, 900)):
        paces.see(_glance(float(at), [_worker(1, tokens)]))
    assert paces.tokens_per_s == 0


def test_states_of_workers_are_told() -> None:
    """A worker that is silent, drains or has trouble is told from one that is ready."""
    odd = [
        _worker(1, 0, is_alive=False, silent_s=4.0),
        _worker(2, 0, is_draining=True),
        _worker(3, 0, trouble="loading"),
    ]
    text = "\n".join(_lines(_glance(1.0, [*odd, _worker(4, 0)], jobs=0), 80, 24))
    for words in ("silent 4.0 s", "draining", "loading", "ready", "No jobs yet"):
        assert words in text
    assert "does not answer" in _lines(_glance(1.0, []), 80, 24, problem="trying again: Redis does not answer")[-1]


def test_bars() -> None:
    """Bars are as high as their share of the greatest value shown; nothing at all is flat."""
    assert sparkline([0, 4, 8], 10) == "▁▄█"
    assert sparkline([9, 9, 1, 2], 2) == "▄█"
    assert sparkline([0, 0], 5) == "▁▁"
    assert sparkline([], 5) == sparkline([1, 2], 0) == sparkline([1, 2], -3) == ""
