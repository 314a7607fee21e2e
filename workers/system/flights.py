"""A batch's lines on their way: submitted as far as the queue has room, heard of when their jobs end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from farm.batch_lines import Line
from farm.contracts import Request
from farm.errors import (
    FarmError,
    IdempotencyConflict,
    InvalidRequest,
    JobNotFound,
    QueueFull,
    QuotaExceeded,
    ServerFull,
)
from farm.flow import CHUNK
from farm.ledger.driving import Drive
from farm.ledger.jobs import Jobs
from farm.ledger.records import Piece, Submission
from farm.ledger.streams import Reader
from farm.ledger.watch import News, Watch
from farm.prompts import PromptCheck
from farm.results import JobView
from workers.system.hold import Hold

FULL_PAUSE_S = 0.5  # how long to wait for room in the queue,
ROOM_PAUSE_S = 0.05  # and how long once a job has ended, which made some
WINDOW_BYTES = 64 << 20

Told = Callable[[Line, JobView | FarmError], None]


@dataclass(slots=True)
class _Flight:
    """A line whose job waits to be submitted, or for its end."""

    line: Line
    submission: Submission
    size: int
    watch: Watch | None = None


class Flights:
    """The lines of one batch that are under way. ``tell`` is told what came of each: its job, or why there is none."""

    def __init__(self, jobs: Jobs, reader: Reader, checks: PromptCheck, drive: Drive, hold: Hold, tell: Told) -> None:
        self._jobs = jobs
        self._reader = reader
        self._checks = checks
        self._drive = drive
        self._hold = hold
        self._tell = tell
        self._inbox: SimpleQueue[tuple[str, News]] = SimpleQueue()
        self._backlog: deque[_Flight] = deque()
        self._flying: dict[str, _Flight] = {}
        self._bytes = 0
        self._full_until = 0.0

    def __len__(self) -> int:
        return len(self._backlog) + len(self._flying)

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another line."""
        return len(self) >= self._jobs.settings.batches.window or self._bytes >= WINDOW_BYTES

    def checker(self) -> Callable[[Request], None]:
        """A check of requests against their models, good for a moment."""
        check = self._checks.checker()
        return lambda request: self._hold.patiently(lambda: check(request))

    def add(self, line: Line, size: int, check: Callable[[Request], None]) -> None:
        """Have a line submitted, of so many bytes, if it passes the check."""
        assert line.request is not None
        try:
            check(line.request)
            submission = self._jobs.place(
                line.request, tenant=self._drive.batch.tenant, job_id=self._drive.job_id(line.number)
            )
        except InvalidRequest as error:
            self._tell(line, error)
            return
        self._bytes += size
        self._backlog.append(_Flight(line, submission, size))

    def submit(self) -> None:
        """Submit what waits, as far as there is room in the queue."""
        while self._backlog and time.monotonic() >= self._full_until:
            self._hold.check()
            some = [self._backlog.popleft() for _ in range(min(CHUNK, len(self._backlog)))]
            if left := self._send(some):
                self._backlog.extendleft(reversed(left))
                self._full_until = time.monotonic() + FULL_PAUSE_S

    def hear(self, wait_s: float) -> None:
        """Tell what came of jobs meanwhile; waits so long for the first."""
        try:
            news = self._inbox.get(timeout=wait_s) if wait_s else self._inbox.get_nowait()
            while True:
                self._note(*news)
                news = self._inbox.get_nowait()
        except Empty:
            return

    def close(self) -> None:
        """Hear of nothing any more; the jobs run on."""
        self._reader.unwatch([flight.watch for flight in self._flying.values() if flight.watch])

    def _send(self, flights: list[_Flight]) -> list[_Flight]:
        """Submit some. Returns those for which there is no room now."""
        wanted = [flight.submission for flight in flights]
        try:
            answers = self._hold.patiently(lambda: self._jobs.submit_each(wanted))
        except ServerFull:  # what was written of them is found there the next time
            return flights
        sent, left = [], []
        for flight, what in zip(flights, answers, strict=True):
            # A conflict: the farm reads the line otherwise than when it submitted it. What it submitted then counts.
            if isinstance(what, bool | IdempotencyConflict):
                sent.append(flight)
            elif isinstance(what, QuotaExceeded | QueueFull | ServerFull):
                left.append(flight)
            else:
                self._end(flight, what)
        self._watch(sent)
        return left

    def _watch(self, flights: list[_Flight]) -> None:
        for flight in flights:
            self._flying[flight.submission.id] = flight
            flight.watch = Watch(flight.submission.id, lambda *news: self._inbox.put(news))
        self._hold.patiently(lambda: self._reader.watch([flight.watch for flight in flights if flight.watch]))

    def _note(self, job_id: str, news: News) -> None:
        flight = self._flying.pop(job_id, None)
        if flight is None or isinstance(news, Piece):
            return
        if isinstance(news, JobNotFound):  # a restored server has forgotten it, or it was trimmed before it was read
            self._backlog.append(flight)
        elif isinstance(news, FarmError):
            if not news.retryable:
                raise news
            self._watch([flight])
        else:
            self._end(flight, news)

    def _end(self, flight: _Flight, what: JobView | FarmError) -> None:
        self._bytes -= flight.size
        self._full_until = min(self._full_until, time.monotonic() + ROOM_PAUSE_S)
        self._tell(flight.line, what)
