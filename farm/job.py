"""A handle on one job, from any thread or process that knows its id."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from queue import Empty
from typing import TYPE_CHECKING

from farm.contracts import JobState
from farm.errors import FarmError, InvalidRequest
from farm.flow import not_succeeded, result_of
from farm.ledger import dead
from farm.ledger.records import Piece
from farm.ledger.watch import News
from farm.results import Completion, Delta, JobView

if TYPE_CHECKING:
    from farm.client import Farm

ASK_S = 0.5  # what a server gets to say how a job stands, however short a caller's timeout


class Job:
    """One submitted prompt. Two of the same id are equal; it may be used from any thread and process."""

    __slots__ = ("farm", "id")

    def __init__(self, farm: Farm, job_id: str) -> None:
        self.farm = farm
        self.id = job_id

    def status(self) -> JobView:
        """How the job stands, its text so far, its place in line. Raises JobNotFound, JobGone, ServerUnreachable."""
        with self.farm.ledger.in_time():
            return self.farm.ledger.view(self.id, with_position=True)

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the completion, at most ``timeout`` seconds, also while the server is away (at least half a second).

        Raises JobFailed, JobDead, JobExpired or JobCancelled, whose ``job`` holds the partial text and the history;
        TimeoutError (the job runs on); JobNotFound, JobGone; ServerUnreachable if the server never answered this client
        or is silent for ``client.outage_s``.
        """
        result = result_of(self._last_news() if timeout is None else self._last_news_within(timeout))
        if isinstance(result, FarmError):
            raise result
        return result

    def stream(self, start: int = 0) -> Iterator[Delta]:
        """The text as it is generated, from token index ``start`` on; ends with the job.

        No text is missed or repeated when workers die or the server restarts. Raises like ``result`` when the job does
        not succeed.
        """
        check_start(start)
        with self.farm.watching([self.id], start=start) as inbox:
            while True:
                _, news = inbox.get()
                piece = piece_of(news)
                if delta := delta_of(piece):
                    yield delta
                if piece.state.is_terminal:
                    break
        if piece.state is not JobState.SUCCEEDED:
            raise self.not_succeeded()

    def cancel(self) -> JobState:
        """End the job unless it has ended. Returns its state then: ``cancelled``, or how it had ended before.

        Raises JobNotFound, JobGone, ServerUnreachable.
        """
        with self.farm.ledger.in_time():
            [state] = self.farm.ledger.cancel([self.id])
            return state or self.farm.ledger.view(self.id).state

    def retry(self, *, fresh: bool = False) -> None:
        """Queue the job again although it is dead; then it may be waited for again.

        It starts with no strikes and goes on from its tokens, or from none if ``fresh``; its deadline starts anew.
        Raises JobNotDead if it is in any other state; JobNotFound, JobGone, ServerUnreachable.
        """
        with self.farm.ledger.in_time():
            [answer] = dead.retry(self.farm.ledger, [self.id], fresh=fresh)
            self._require(answer, "retry")

    def purge(self) -> None:
        """Delete the job, which is dead, with all that is known of it. Raises like ``retry``."""
        with self.farm.ledger.in_time():
            [answer] = dead.purge(self.farm.ledger, [self.id])
            self._require(answer, "purge")

    def timed_out(self, timeout: float) -> TimeoutError:
        """The error of a wait that took ``timeout`` seconds."""
        trouble = self.farm.reader.trouble
        if trouble is not None:
            return TimeoutError(f"job {self.id}: no news within {timeout:g} s, it may have ended: {trouble}")
        return TimeoutError(f"job {self.id} has not ended within {timeout:g} s; it runs on: wait again, or cancel it")

    def not_succeeded(self) -> FarmError:
        """Why the job, which has ended, has no completion."""
        return not_succeeded(self.farm.patiently(lambda: self.farm.ledger.view(self.id)))

    def _last_news(self) -> News:
        with self.farm.watching([self.id]) as inbox:
            return inbox.get()[1]

    def _last_news_within(self, timeout: float) -> News:
        until = time.monotonic() + timeout
        asked = threading.Event()
        with self.farm.watching([self.id], asked=asked.set) as inbox:
            asked.wait(ASK_S)
            try:
                return inbox.get(timeout=max(0.0, until - time.monotonic()))[1]
            except Empty:
                raise self.timed_out(timeout) from None

    def _require(self, answer: dead.Answer, wanted: dead.Deed) -> None:
        if not answer.is_done:
            raise dead.refusal(self.farm.ledger, answer, wanted)

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)


def piece_of(news: News) -> Piece:
    """The piece in a stream's news. Raises the error that it is otherwise."""
    if isinstance(news, FarmError):
        raise news
    assert isinstance(news, Piece)
    return news


def delta_of(piece: Piece) -> Delta | None:
    """What a piece adds to a stream, if anything."""
    text = "".join(text for _, text in piece.tokens) + (piece.tail if piece.state.is_terminal else "")
    if not piece.tokens and not text:
        return None
    return Delta(text, piece.start + len(piece.tokens), [token for token, _ in piece.tokens])


def check_start(start: int) -> None:
    """Raise InvalidRequest for an index that no token can have."""
    if start < 0:
        raise InvalidRequest("start", f"{start} is out of range; give a token index, 0 or more")
