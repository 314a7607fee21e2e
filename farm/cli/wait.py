"""``farm wait``: the completions of jobs that were submitted earlier, here or elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Annotated

import typer
from rich.progress import Progress

from farm.cli.answers import goes_on, print_text, say_if_nobody_serves, sum_up
from farm.cli.exits import FAILED, INTERRUPTED
from farm.cli.help import Command, commands, examples
from farm.cli.options import JobIds, Json, job_ids, reachable_settings
from farm.cli.output import duration, emit, note
from farm.cli.progress import bar
from farm.client import Farm
from farm.contracts import JobState
from farm.errors import FarmError, ServerUnreachable
from farm.flow import not_succeeded
from farm.ledger.watch import VIEWS_PER_CALL, News, chunks
from farm.results import JobView

LOOK_EVERY_S = 0.5
app = commands()


@app.command(
    cls=Command,
    epilog=examples(
        "farm wait 0192f0c1-…",
        "farm wait 0192f0c1-… 0192f0c2-… --timeout 60",
        'id=$(farm submit "A goat" --no-wait) && farm wait $id',
        "farm wait - --json < ids.txt | jq -r .text",
    ),
)
def wait(
    jobs: JobIds,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Wait no longer than this; the jobs run on.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Wait for jobs, and print their completions.

    The text of one job comes alone, as from farm submit. Several come as they end, each below a line with its id; with
    --json each is a line. Fails (1) if a job did not succeed, is unknown or has not ended in time. If you stop waiting
    (Ctrl-C), the jobs go on.
    """
    wanted = job_ids(jobs)
    left = dict.fromkeys(wanted)
    has_failed = False
    with Farm(reachable_settings()) as farm:
        try:
            with farm.watching(wanted) as inbox, _Meter(farm, wanted, is_shown=not as_json) as meter:
                _say_if_nobody_serves(farm, wanted)
                for job_id, news in _ends(inbox, len(wanted), timeout, lambda: meter.move(left)):
                    del left[job_id]
                    with meter.aside():
                        has_failed |= not _tell(job_id, news, is_alone=len(wanted) == 1, as_json=as_json)
        except KeyboardInterrupt:
            note(f"\nstopped waiting; {_go_on(left)}")
            raise typer.Exit(INTERRUPTED) from None
        except TimeoutError:
            trouble = f" ({farm.reader.trouble})" if farm.reader.trouble else ""
            note(f"no answer within {timeout:g} s{trouble}; {_go_on(left)}")
            if as_json:
                _emit_all(farm, list(left))
            raise typer.Exit(FAILED) from None
    if has_failed:
        raise typer.Exit(FAILED)


class _Meter:
    """A bar on a terminal: the tokens of a job, or how many of several jobs have ended."""

    def __init__(self, farm: Farm, wanted: Collection[str], *, is_shown: bool) -> None:
        self._farm, self._count = farm, len(wanted)
        self._bar: Progress | None = bar(is_passing=True) if is_shown and sys.stderr.isatty() else None
        self._task = self._bar.add_task("", total=None, words="") if self._bar else None

    def move(self, left: Collection[str]) -> None:
        """Show how those that are left stand."""
        if self._bar is None or self._task is None:
            return
        if self._count > 1:
            self._bar.update(self._task, total=self._count, completed=self._count - len(left), words="jobs ended")
            return
        with suppress(FarmError):  # a server that is away, or a job that has just gone: the wait itself tells
            view = self._farm.ledger.view(next(iter(left)), with_position=True)
            tokens = view.usage.completion_tokens
            self._bar.update(self._task, total=view.most_tokens or None, completed=tokens, words=_words(view))

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take it off the screen while something is printed."""
        if self._bar is None:
            yield
            return
        self._bar.stop()
        yield
        self._bar.start()

    def __enter__(self) -> _Meter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _words(view: JobView) -> str:
    if not view.position:
        return f"tokens · {'running' if view.state is JobState.RUNNING else 'queued'}"
    eta = f", about {duration(view.eta_s)} to go" if view.eta_s is not None else ""
    return f"tokens · {view.position:,} in line{eta}"


def _ends(
    inbox: SimpleQueue[tuple[str, News]], count: int, timeout_s: float | None, look: Callable[[], None]
) -> Iterator[tuple[str, News]]:
    """Jobs with their last news, as they end; ``look`` is called meanwhile. Raises TimeoutError."""
    until = math.inf if timeout_s is None else time.monotonic() + timeout_s
    for _ in range(count):
        while True:
            left_s = until - time.monotonic()
            try:
                news = inbox.get(timeout=max(0.0, min(left_s, LOOK_EVERY_S)))
            except Empty:
                if left_s <= LOOK_EVERY_S:
                    raise TimeoutError from None
                look()
            else:
                break
        yield news


def _tell(job_id: str, news: News, *, is_alone: bool, as_json: bool) -> bool:
    """Print how a job ended; whether it succeeded. Raises ServerUnreachable when that is all the news."""
    if isinstance(news, ServerUnreachable):
        raise news
    if isinstance(news, FarmError):
        if as_json:
            emit({"id": job_id, "state": None})
        sys.stderr.write(f"farm: {news}\n")
        return False
    assert isinstance(news, JobView)
    has_succeeded = news.state is JobState.SUCCEEDED
    if as_json:
        emit(news.to_dict())
    elif has_succeeded or news.text:
        if not is_alone:
            sys.stdout.write(f"==> {job_id} <==\n")
            sys.stdout.flush()
        print_text(news)
    if not has_succeeded:
        sys.stderr.write(f"farm: {not_succeeded(news)}\n")
    elif not as_json:
        sum_up(news)
    return has_succeeded


def _say_if_nobody_serves(farm: Farm, wanted: list[str]) -> None:
    """Of the first jobs, which are enough for a word."""
    views = [view for view in farm.ledger.views(wanted[:VIEWS_PER_CALL]) if view and not view.state.is_terminal]
    for model in dict.fromkeys(view.model for view in views):
        say_if_nobody_serves(farm, model)


def _go_on(left: Collection[str]) -> str:
    if len(left) == 1:
        return goes_on(next(iter(left)))
    return f"{len(left):,} jobs go on; the same command waits for them again"


def _emit_all(farm: Farm, ids: list[str]) -> None:
    for some in chunks(ids, VIEWS_PER_CALL):
        for view in farm.ledger.views(some):
            if view is not None:
                emit(view.to_dict())
