"""One batch, from where it had come to up to its end, or to where somebody else goes on.

Lines become jobs whose ids follow from batch and line, so that none is ever submitted twice. What came of them is
written to a part, then the ledger hears of it, and then they are forgotten: a crash leaves a batch to go on from.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import BinaryIO

from farm.batch_lines import Line, answer, parse_line, refusal, rejection
from farm.contracts import JobState
from farm.errors import FarmError, InvalidRequest
from farm.file_store import Store
from farm.flow import CHUNK, not_succeeded
from farm.ledger.driving import Drive, Driving, Ending, Product, Progress
from farm.ledger.files import FileNotFound, Files
from farm.ledger.jobs import Jobs
from farm.ledger.streams import Reader
from farm.ledger.trash import Trash
from farm.ledger.watch import chunks
from farm.prompts import PromptCheck
from farm.results import JobView
from workers.system.batch_input import lines, survey
from workers.system.batch_output import Output
from workers.system.flights import Flights
from workers.system.hold import Hold, TurnOver
from workers.system.tally import Tally, numbers_in

HEAR_S = 0.25
MOST_FAULTS = 5
SPREAD = 8  # lines read beyond the first that is not settled, as a multiple of the window
DEFAULTS = {"priority": "low"}  # whoever waits for an answer goes before whoever comes back tomorrow


class DuplicateId(InvalidRequest):
    """A custom_id that an earlier line has."""

    code = "duplicate_custom_id"


class BatchExpired(FarmError):
    """The window closed before this line was answered."""

    code = "batch_expired"
    retryable = True
    http_status = 503


class BatchCancelled(FarmError):
    """The batch was cancelled before this line was answered."""

    code = "batch_cancelled"
    retryable = True
    http_status = 503


LEFT: dict[Ending, FarmError] = {
    "expired": BatchExpired("this request could not be executed before the completion window expired"),
    "cancelled": BatchCancelled("the batch was cancelled before this request was executed"),
}


@dataclass(frozen=True, slots=True)
class Workshop:
    """What all batches of one worker share."""

    jobs: Jobs
    reader: Reader
    checks: PromptCheck
    store: Store
    files: Files
    trash: Trash
    driving: Driving


class BatchRun:
    """A batch in the hands of one thread."""

    def __init__(self, shop: Workshop, drive: Drive, hold: Hold) -> None:
        self._shop = shop
        self._drive = drive
        self._hold = hold
        self._settings = shop.jobs.settings.batches
        self._most_line_bytes = shop.jobs.settings.api.max_body_bytes
        self._output = Output(shop.store, drive)
        self._flights = Flights(shop.jobs, shop.reader, shop.checks, drive, hold, self._settle)
        self._begin(drive.progress)
        self._done: list[str] = []  # jobs that are settled and not forgotten yet
        self._is_drained = False
        self._flushed_at = time.monotonic()

    def run(self) -> None:
        """Go on until the batch has ended, or is left to others.

        Raises LeaseLost, TurnOver, StoreUnavailable; what was not written by then is looked up again.
        """
        drive = self._drive
        if drive.progress.faults >= MOST_FAULTS:
            self._fail("internal_error", "this batch meets a defect of the farm again and again; its log says more")
            return
        try:
            if not drive.progress.total and not self._validate():
                return
            if not drive.progress.ending:
                ending = self._work()
                self._flush(replace(self._tally.progress(), ending=ending))
            if drive.progress.ending in LEFT:
                self._wind_down(drive.progress.ending)
            self._finish(drive.progress.ending or "completed")
        except TurnOver:
            self._flush()
            raise
        except (FileNotFound, FileNotFoundError):
            self._fail(
                "file_missing",
                "a file of this batch is not in the store of the farm's system workers; they and the API must be told "
                "the same FARM_FILES__URL",
            )

    # The parts of a batch's life.

    def _validate(self) -> bool:
        """Look through the input. False if there is nothing to run: the batch has failed then."""
        most = self._settings.max_lines
        with self._opened() as file:
            seen = survey(file, most, self._most_line_bytes, self._hold.check_lease)
        if seen.total == 0:
            return self._fail("empty_file", "the input file holds no line; give one request per line")
        if seen.total > most:
            return self._fail("too_many_lines", f"the input file holds more than {most:,} lines; split it")
        progress = Progress(total=seen.total, repeats=seen.repeats, model=seen.model)
        self._hold.patiently(lambda: self._shop.driving.advance(self._drive, progress, status="in_progress"))
        self._begin(progress)
        return True

    def _begin(self, progress: Progress) -> None:
        self._tally = Tally(progress)
        self._repeats = frozenset(numbers_in(progress.repeats))

    def _work(self) -> Ending:
        """Submit lines and write what comes of them. Returns how the batch ends."""
        try:
            with self._opened() as file:
                source = lines(file, self._drive.progress, self._most_line_bytes)
                while (ending := self._hold.ending()) is None:
                    self._hold.check()
                    has_room = self._fill(source)
                    self._flights.submit()
                    if self._is_drained and not self._flights:
                        return "completed"
                    self._flights.hear(0.0 if has_room else HEAR_S)
                    if self._output.is_full or time.monotonic() >= self._flushed_at + self._settings.flush_s:
                        self._flush()
                return ending
        finally:
            self._flights.close()

    def _fill(self, source: Iterator[tuple[int, bytes | None, int]]) -> bool:
        """Read some lines, as far as there is room for them. Returns whether there may be room for more."""
        check = self._flights.checker()
        for _ in range(CHUNK):
            is_spread = self._tally.spread >= SPREAD * self._settings.window
            if self._is_drained or is_spread or self._flights.is_full or self._output.is_full:
                return False
            if (item := next(source, None)) is None:
                self._is_drained = True
                return False
            number, raw, end = item
            if not self._tally.read(number, end):
                continue
            line = self._parse(number, raw)
            if line.error is not None:
                self._settle(line, line.error)
            else:
                self._flights.add(line, len(raw or b""), check)
        return True

    def _wind_down(self, ending: Ending) -> None:
        """Settle all lines that are left: those whose jobs have ended as these did, the others as the batch ends."""
        self._begin(self._drive.progress)
        some: list[Line] = []
        with self._opened() as file:
            for number, raw, end in lines(file, self._drive.progress, self._most_line_bytes):
                if self._tally.read(number, end):
                    some.append(self._parse(number, raw))
                if len(some) == CHUNK:
                    self._settle_left(some, ending)
                    some = []
            self._settle_left(some, ending)
        self._flush()

    def _settle_left(self, some: list[Line], ending: Ending) -> None:
        self._hold.check()
        ids = [self._drive.job_id(line.number) for line in some]
        self._hold.patiently(lambda: self._shop.jobs.cancel(ids))
        views = self._hold.patiently(lambda: self._shop.jobs.views(ids))
        for line, view in zip(some, views, strict=True):
            if view is not None and view.state is not JobState.CANCELLED:
                self._settle(line, view)
            else:
                self._settle(line, line.error or LEFT[ending])
        if self._output.is_full:
            self._flush()

    def _finish(self, ending: Ending) -> None:
        """Put the parts together and end the batch."""
        drive, driving = self._drive, self._shop.driving
        self._hold.patiently(lambda: driving.advance(drive, drive.progress, status="finalizing"))
        products = self._output.assemble(self._shop.trash, self._hold.check_lease)
        self._hold.patiently(lambda: driving.end(drive, ending, products))

    def _fail(self, code: str, message: str) -> bool:
        """End the batch with what there is so far; jobs that run for it are cancelled. Returns False."""
        now, ahead = self._tally.progress(), self._settings.window * SPREAD
        for some in chunks(range(now.next_line, min(now.total + 1, now.next_line + ahead)), CHUNK):
            ids = [self._drive.job_id(number) for number in some]
            self._hold.patiently(lambda ids=ids: self._shop.jobs.cancel(ids))  # type: ignore[misc]
        error = {"code": code, "message": message, "line": None, "param": None}
        products: list[Product] = []
        with suppress(FileNotFoundError):
            products = self._output.assemble(self._shop.trash, self._hold.check_lease)
        self._hold.patiently(lambda: self._shop.driving.end(self._drive, "failed", products, [error]))
        return False

    # Lines and what is written for them.

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """The input. Raises FileNotFound, FileNotFoundError, StoreUnavailable."""
        batch, files = self._drive.batch, self._shop.files
        record = self._hold.patiently(lambda: files.get(batch.input_file_id, batch.tenant, even_expired=True))
        with self._shop.store.reader(record.path) as file:
            yield file

    def _parse(self, number: int, raw: bytes | None) -> Line:
        line = parse_line(number, raw, DEFAULTS, self._most_line_bytes)
        error: InvalidRequest
        if number in self._repeats:
            error = DuplicateId("custom_id", f"{line.custom_id[:60]!r} was used by an earlier line; give each its own")
        elif line.request is not None and line.request.webhook_url is not None:
            error = InvalidRequest("webhook_url", "is not for a line; give it to the batch")
        else:
            return line
        return replace(line, request=None, error=error)

    def _settle(self, line: Line, what: JobView | FarmError) -> None:
        """Have what came of a line written."""
        job_id = self._drive.job_id(line.number)
        if isinstance(what, JobView) and what.state is JobState.SUCCEEDED:
            self._output.add("output", answer(line, what))
            self._tally.settle(line.number, what.usage)
        else:
            error = not_succeeded(what) if isinstance(what, JobView) else what
            is_left = isinstance(error, BatchExpired | BatchCancelled)
            record = refusal(line, error, job_id=job_id) if is_left else rejection(line, error, job_id)
            self._output.add("error", record)
            self._tally.settle(line.number, None)
        self._done.append(job_id)

    def _flush(self, progress: Progress | None = None) -> None:
        """Write what is settled: to a part, to the ledger; then its jobs may go."""
        self._hold.check_lease()
        self._flushed_at = time.monotonic()
        new = progress or self._tally.progress()
        if new == self._drive.progress:
            return
        parts = self._output.write_parts()
        self._hold.patiently(lambda: self._shop.driving.advance(self._drive, new, parts))
        done, self._done = self._done, []
        for some in chunks(done, CHUNK):
            self._forget(list(some))

    def _forget(self, job_ids: list[str]) -> None:
        self._hold.patiently(lambda: self._shop.jobs.forget(self._drive.batch.tenant, job_ids))
