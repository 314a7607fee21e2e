"""How far a batch is: a bar on a terminal, a line now and then elsewhere. Always on stderr."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from farm.batch_report import BatchReport
from farm.cli.output import duration, note, stderr

WINDOW_S = 10.0
LINE_EVERY_S = 10.0


class Pace:
    """Tokens and lines per second over the last ten seconds; over all of it until then."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque([(0.0, 0, 0)])

    def see(self, report: BatchReport) -> None:
        self._seen.append((report.elapsed_s, report.new_tokens, report.succeeded + report.failed))
        while len(self._seen) > 2 and self._seen[1][0] <= report.elapsed_s - WINDOW_S:
            self._seen.popleft()

    @property
    def tokens_per_s(self) -> float:
        return self._rate(1)

    def eta_s(self, report: BatchReport) -> float | None:
        """Seconds until all lines have an answer, None while nobody can know."""
        lines_per_s = self._rate(2)
        if report.total is None or lines_per_s <= 0:
            return None
        return (report.total - report.done) / lines_per_s

    def _rate(self, index: int) -> float:
        first, last = self._seen[0], self._seen[-1]
        took_s = last[0] - first[0]
        return (last[index] - first[index]) / took_s if took_s > 0 else 0.0


def words(report: BatchReport, pace: Pace) -> str:
    """What stands beside the bar."""
    parts = [f"{report.failed:,} failed"] if report.failed else []
    parts.append(f"{pace.tokens_per_s:,.0f} tokens/s")
    eta_s = pace.eta_s(report)
    if eta_s is not None and report.done < (report.total or 0):
        parts.append(f"{duration(eta_s)} left")
    return " · ".join(parts)


@dataclass(frozen=True, slots=True)
class Shown:
    """What ``run_batch`` calls: ``report`` with how far it is, ``say`` with a line that must not tear the bar."""

    report: Callable[[BatchReport], None]
    say: Callable[[str], None]


@contextmanager
def shown(*, is_quiet: bool = False) -> Iterator[Shown]:
    """Show a batch for as long as the block lasts. is_quiet: only what must be said."""
    pace = Pace()
    if is_quiet:
        yield Shown(pace.see, note)
    elif sys.stderr.isatty():
        with bar() as moving:
            task = moving.add_task("", total=None, words="")

            def move(report: BatchReport) -> None:
                pace.see(report)
                moving.update(task, total=report.total, completed=report.done, words=words(report, pace))

            yield Shown(move, lambda text: moving.console.print(text, style="dim", markup=False))
    else:
        yield Shown(_Lines(pace), note)


class _Lines:
    """A line every ten seconds, for logs."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._next_at = time.monotonic() + LINE_EVERY_S

    def __call__(self, report: BatchReport) -> None:
        self._pace.see(report)
        if time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + LINE_EVERY_S
            total = "" if report.total is None else f" of {report.total:,}"
            note(f"{report.done:,}{total} done · {words(report, self._pace)}")


def bar(*, is_passing: bool = False) -> Progress:
    """A bar of how many of how many, with words beside it. is_passing: it leaves no trace when it stops."""
    return Progress(
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}", markup=False),
        console=stderr(),
        transient=is_passing,
        redirect_stdout=not is_passing,  # or it would print to stderr what is for stdout
    )
