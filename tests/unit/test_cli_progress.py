"""What stands beside a batch's progress bar."""

from __future__ import annotations

import pytest

from farm.batch_report import BatchReport
from farm.cli.progress import Pace, words

pytestmark = pytest.mark.fast


def _report(elapsed_s: float, done: int, tokens: int, *, failed: int = 0, total: int | None = 100) -> BatchReport:
    return BatchReport(
        total, read=done, succeeded=done - failed, failed=failed, completion_tokens=tokens, elapsed_s=elapsed_s
    )


def test_pace_is_of_the_last_ten_seconds() -> None:
    """A slow start does not spoil the estimate: the pace is the recent one."""
    pace = Pace()
    for report in (_report(100.0, 1, 10), _report(105.0, 26, 260), _report(110.0, 51, 510)):
        pace.see(report)
    assert pace.tokens_per_s == pytest.approx(50)
    assert pace.eta_s(report) == pytest.approx(9.8)
    assert words(report, pace) == "50 tokens/s · 9.8 s left"


def test_words_name_failures_and_keep_silent_about_the_unknown() -> None:
    """Failed lines are counted; without a total or a pace nothing is promised."""
    pace = Pace()
    report = _report(2.0, 4, 30, failed=1, total=None)
    pace.see(report)
    assert words(report, pace) == "1 failed · 15 tokens/s"
    assert words(_report(0.0, 0, 0), Pace()) == "0 tokens/s"
