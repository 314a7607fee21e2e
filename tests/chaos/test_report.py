"""The harness itself: its report, its arguments, its schedules of the ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import ledger
from tests.chaos.__main__ import main
from tests.chaos.report import BEGIN, DOCS, END, Row, table, with_figures

ROWS = [Row("jobs", "0 lost", "0 lost", True), Row("commands", "<= 0.1", "0.3", False)]


@pytest.mark.fast
def test_a_missed_target_says_so() -> None:
    """A figure that misses its target is marked in the table."""
    lines = table(ROWS).splitlines()
    assert lines[2:] == ["| jobs | 0 lost | 0 lost |", "| commands | <= 0.1 | 0.3 (**missed**) |"]


@pytest.mark.fast
def test_figures_go_between_the_marks_of_the_docs() -> None:
    """Writing the figures changes nothing else in the docs, and writing them twice is writing them once."""
    docs = DOCS.read_text(encoding="utf-8")
    once = with_figures(docs, table(ROWS))
    assert table(ROWS) in once
    assert with_figures(once, table(ROWS)) == once
    assert once.partition(BEGIN)[0] == docs.partition(BEGIN)[0]
    assert once.partition(END)[2] == docs.partition(END)[2]
    with pytest.raises(ValueError, match="marks"):
        with_figures("no marks", "")


@pytest.mark.fast
@pytest.mark.parametrize("text", ["{}", "nonsense", '{"seed": 1, "profile": "picnic", "seconds": 1, "faults": []}'])
def test_what_can_not_be_replayed_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is no schedule, or none of a known profile, ends the command with a line and exit code 2."""
    path = tmp_path / "schedule.json"
    path.write_text(text)
    assert main(["--replay", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert main(["--check", str(tmp_path / "nowhere")]) == 2


@pytest.mark.fast
def test_a_schedule_can_be_looked_at_without_running_it(capsys: pytest.CaptureFixture[str]) -> None:
    """--dry-run prints the schedule of a seed."""
    assert main(["--profile", "kills", "--seed", "7", "--seconds", "20", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("seed 7, profile kills, 20 s")


def test_the_ledger_is_explored_by_seed() -> None:
    """Schedules of the ledger alone are drawn from a seed, and each has many steps."""
    one, other = ledger.explore(5, seed=3), ledger.explore(5, seed=3)
    assert one.schedules >= 5
    assert (one.schedules, one.steps) == (other.schedules, other.steps)
    assert one.steps > 10 * one.schedules
