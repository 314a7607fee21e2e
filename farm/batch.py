"""Run a file of prompts through the farm: ``farm batch IN.jsonl -o OUT.jsonl``.

Answers are appended as they come. An interrupted run goes on where it was: lines with an answer are skipped, and jobs
still in the farm are taken up again, since their ids follow from the output file, the line's custom_id and its content.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import BinaryIO, TypeVar

from farm.batch_file import Answers, Standing
from farm.batch_lines import DUPLICATE_ID, ID, Line, answer, is_retryable, numbered_lines, parse_line, refusal
from farm.batch_report import BatchReport
from farm.client import Farm
from farm.contracts import JobState
from farm.errors import FarmError, InvalidRequest, JobNotFound
from farm.flight import draw
from farm.flow import CHUNK, MOST_RESUBMISSIONS, not_succeeded
from farm.ledger.records import Piece, Submission
from farm.ledger.watch import News, Watch
from farm.patience import patiently

DEFAULT_WINDOW = 1_000
COUNTED_BYTES = 4 << 30
LISTEN_S = 1.0
NOTICE_S = 10.0  # an outage is mentioned at most so often

T = TypeVar("T")


class DuplicateId(InvalidRequest):
    """A custom_id that an earlier line has."""

    code = "duplicate_custom_id"


def run_batch(
    farm: Farm,
    source: Path | str,
    target: Path | str,
    *,
    defaults: Mapping[str, object] | None = None,
    window: int = DEFAULT_WINDOW,
    run_id: str | None = None,
    retry_errors: bool = False,
    on_progress: Callable[[BatchReport], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> BatchReport:
    """Answer every line of ``source`` in ``target``, in the order of completion; returns the final report.

    source: a file, or ``-`` for standard input; while one of its lines is awaited, answers wait too.
    defaults: fields for lines that don't say. window: most jobs in flight. run_id: whose jobs to take up again; the
    target's path unless given, so that another id answers all lines anew. retry_errors: ask lines again whose error may
    not come again (dead, expired, cancelled, out of retries); their errors are taken out of the target first.
    on_progress: called after each round, and every second between.
    A bad line gets an error in its place. Outages are waited out, however long, and mentioned to ``on_notice``.
    An interrupt leaves a target to go on from; jobs in flight run on.
    Raises InvalidRequest (window; a target that is the source), OutputUnusable, OSError.
    """
    if window < 1:
        raise InvalidRequest("window", f"{window} is out of range; give 1 or more jobs in flight")
    target = Path(target)
    with _opened(source, target) as (file, total), Answers(target, retry_errors=retry_errors) as answers:
        batch = _Batch(farm, answers, defaults or {}, window, run_id or str(target.absolute()), on_notice)
        batch.report = BatchReport(total, retried=answers.retried)
        with closing(batch):
            for report in batch.run(numbered_lines(file)):
                if on_progress is not None:
                    on_progress(report)
    return batch.report


@contextmanager
def _opened(source: Path | str, target: Path) -> Iterator[tuple[BinaryIO, int | None]]:
    """The input and the number of its lines, if that is cheap to know."""
    if str(source) == "-":
        yield sys.stdin.buffer, None
        return
    path = Path(source)
    if target.exists() and path.samefile(target):
        raise InvalidRequest("output", f"{target} is the input; choose another output file")
    with path.open("rb") as file:
        yield file, _count_lines(path) if path.is_file() and path.stat().st_size <= COUNTED_BYTES else None


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if not line.isspace())


@dataclass(slots=True)
class _Flight:
    """A line whose job is on its way. ``is_taken_up``: the job was there before this run, with ``found_tokens``."""

    line: Line
    submission: Submission
    is_taken_up: bool = False
    found_tokens: int = 0
    resubmissions: int = 0
    watch: Watch | None = None


class _Batch:
    """One run."""

    report: BatchReport

    def __init__(
        self,
        farm: Farm,
        answers: Answers,
        defaults: Mapping[str, object],
        window: int,
        run_id: str,
        on_notice: Callable[[str], None] | None,
    ) -> None:
        self._farm = farm
        self._answers = answers
        self._defaults = defaults
        self._window = window
        self._run_id = run_id
        self._on_notice = on_notice
        self._notice_at = 0.0
        self._check = farm.prompts.checker()
        self._inbox: SimpleQueue[tuple[str, News]] = SimpleQueue()
        self._flying: dict[str, _Flight] = {}
        self._started = time.monotonic()

    def run(self, source: Iterator[tuple[int, bytes | None]]) -> Iterator[BatchReport]:
        """Read, submit and write until all is answered; a report after each round."""
        is_drained = False
        while not is_drained or self._flying:
            room = self._window - len(self._flying)
            if not is_drained and room >= min(CHUNK, max(1, self._window // 8)):
                raws, is_drained = draw(source, min(CHUNK, room))
                self._send([flight for number, raw in raws if (flight := self._admit(number, raw))])
                if self._inbox.empty():
                    yield self._now()
                    continue
            if self._flying:
                self._listen()
            yield self._now()

    def close(self) -> None:
        """Wait for nothing any more."""
        self._farm.reader.unwatch([flight.watch for flight in self._flying.values() if flight.watch])
        self._now()

    def _now(self) -> BatchReport:
        self.report = replace(
            self.report, in_flight=len(self._flying), elapsed_s=round(time.monotonic() - self._started, 3)
        )
        return self.report

    def _count(self, **more: int) -> None:
        self.report = replace(self.report, **{name: getattr(self.report, name) + n for name, n in more.items()})

    def _admit(self, number: int, raw: bytes | None) -> _Flight | None:
        """What to submit for a line, unless it has its answer or gets an error now."""
        line = parse_line(number, raw, self._defaults)
        self._count(read=1)
        standing = self._answers.stand(line.custom_id)
        if standing in (Standing.ANSWERED, Standing.PASSING, Standing.FAILED):
            is_passing = standing is Standing.PASSING
            is_failed = is_passing or standing is Standing.FAILED
            self._count(skipped=1, failed_before=is_failed, passing=is_passing)
            return None
        if standing is Standing.REPEATED:
            error = DuplicateId("custom_id", f"{line.custom_id!r} was used by an earlier line; give each its own")
            self._refuse(line, error, prefix=DUPLICATE_ID)
            return None
        if line.request is None:
            assert line.error is not None
            self._refuse(line, line.error)
            return None
        try:
            self._patiently(partial(self._check, line.request))
            return self._flight(line, self._key(line))
        except InvalidRequest as error:
            self._refuse(line, error)
            return None

    def _flight(self, line: Line, key: str) -> _Flight:
        assert line.request is not None
        submission = self._farm.ledger.place(line.request, tenant=self._farm.tenant, idempotency_key=key)
        return _Flight(line, submission)

    def _key(self, line: Line) -> str:
        assert line.request is not None
        said = "\0".join((self._run_id, line.custom_id, line.request.to_json()))
        return "batch:" + hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    def _send(self, flights: list[_Flight]) -> None:
        """Submit and watch."""
        if not flights:
            return
        new, refused = self._patiently(lambda: self._farm.send([flight.submission for flight in flights]))
        known = set(new)
        for flight in flights:
            job_id = flight.submission.id
            if job_id in refused:
                self._refuse(flight.line, refused[job_id])
                continue
            flight.is_taken_up = job_id not in known
        sent = [flight for flight in flights if flight.submission.id not in refused]
        self._look([flight for flight in sent if flight.is_taken_up])
        self._watch(sent)

    def _look(self, flights: list[_Flight]) -> None:
        """See what jobs of an earlier run have generated so far."""
        if not flights:
            return
        ids = [flight.submission.id for flight in flights]
        for flight, view in zip(flights, self._patiently(lambda: self._farm.ledger.views(ids)), strict=True):
            flight.found_tokens = 0 if view is None else view.usage.completion_tokens

    def _watch(self, flights: list[_Flight]) -> None:
        watches = []
        for flight in flights:
            self._flying[flight.submission.id] = flight
            flight.watch = Watch(flight.submission.id, lambda *news: self._inbox.put(news))
            watches.append(flight.watch)
        self._patiently(lambda: self._farm.reader.watch(watches))

    def _listen(self) -> None:
        """Wait for news, a second at the most, and take all that is there."""
        try:
            self._hear(*self._inbox.get(timeout=LISTEN_S))
            while not self._inbox.empty():
                self._hear(*self._inbox.get())
        except Empty:
            if (trouble := self._farm.reader.trouble) is not None:
                self._say(trouble)

    def _hear(self, job_id: str, news: News) -> None:
        """Write a job's answer, or see to it that there will be one."""
        flight = self._flying.pop(job_id, None)
        if flight is None or isinstance(news, Piece):
            return
        if isinstance(news, JobNotFound) and flight.resubmissions < MOST_RESUBMISSIONS:
            flight.resubmissions += 1  # a restored server has forgotten it
            self._send([flight])
        elif isinstance(news, JobNotFound):
            self._refuse(flight.line, news, job_id=job_id)
        elif isinstance(news, FarmError):
            if not news.retryable:
                raise news
            self._say(news)
            self._watch([flight])
        elif news.state is JobState.SUCCEEDED:
            self._answers.write(answer(flight.line, news))
            usage = news.usage
            self._count(
                succeeded=1,
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                found_tokens=min(flight.found_tokens, usage.completion_tokens),
            )
        elif flight.is_taken_up:
            # It ended before this run, which asks anew. The id follows from the old one, so that a next run finds it.
            self._send([self._flight(flight.line, f"{job_id}:again")])
        else:
            self._refuse(flight.line, not_succeeded(news), job_id=job_id)

    def _refuse(self, line: Line, error: FarmError, *, job_id: str | None = None, prefix: str = ID) -> None:
        self._answers.write(refusal(line, error, job_id=job_id, prefix=prefix))
        self._count(failed=1, passing=is_retryable(error))

    def _patiently(self, call: Callable[[], T]) -> T:
        return patiently(call, math.inf, self._say)

    def _say(self, error: FarmError) -> None:
        """Mention an outage, not too often."""
        now = time.monotonic()
        if self._on_notice is not None and now >= self._notice_at:
            self._notice_at = now + NOTICE_S
            self._on_notice(f"waiting: {error}")
