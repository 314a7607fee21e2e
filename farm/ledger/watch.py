"""Those who wait for jobs in this process, and telling them what the ledger says.

It asks when it is told to and has no thread of its own: ``farm.ledger.streams`` knows when to ask.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from farm import keys
from farm.connection import our_errors
from farm.contracts import JobState
from farm.errors import AnswerRestarted, FarmError, JobNotFound
from farm.ledger.jobs import Jobs
from farm.ledger.records import Piece
from farm.results import JobView

STATES_PER_CALL = 500
VIEWS_PER_CALL = 100

News = Piece | JobView | FarmError
Tell = Callable[[str, News], None]
T = TypeVar("T")
_RESTARTED = (
    "job {id} began anew, since its model was changed: the {tokens:,} tokens that were read are void; "
    "read it again from its first token"
)


class Watch:
    """Somebody who waits for one job.

    ``tell(job_id, news)`` is called from whatever thread has the news, must be quick and must not raise. With ``start``
    it gets a Piece whenever there are tokens from that index on, each once and in order, the last one with a terminal
    state; without it, the JobView once the job has ended. A FarmError is the last news as well: AnswerRestarted when
    tokens before its index were given up since. ``restarts``: how often the job had begun anew when those were read.
    """

    __slots__ = ("index", "is_over", "job_id", "restarts", "tell")

    def __init__(self, job_id: str, tell: Tell, *, start: int | None = None, restarts: int | None = None) -> None:
        self.job_id = job_id
        self.tell = tell
        self.index = start
        self.restarts = restarts
        self.is_over = False


class Watchers:
    """All who wait. Thread-safe."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self.watched: dict[str, list[Watch]] = {}  # by job
        # Reentrant: collecting an abandoned stream calls ``forget`` in whatever thread allocates.
        self.lock = threading.RLock()

    def add(self, watches: Iterable[Watch]) -> None:
        """Have these told what ``look`` and ``hear`` find out, unless they are over."""
        with self.lock:
            for watch in watches:
                if not watch.is_over:
                    self.watched.setdefault(watch.job_id, []).append(watch)

    def remove(self, watches: Iterable[Watch]) -> None:
        """Undo ``add``."""
        with self.lock:
            for watch in watches:
                self._remove(watch)

    def forget(self, watches: Iterable[Watch]) -> None:
        """Tell these nothing more, ever."""
        with self.lock:
            for watch in watches:
                self._forget(watch)

    def everyone(self) -> list[Watch]:
        with self.lock:
            return [watch for watches in list(self.watched.values()) for watch in list(watches)]

    def look(self, watches: Sequence[Watch]) -> None:
        """Read the states of their jobs, and tell those whose jobs have news. Raises ServerUnreachable."""
        ends = list(dict.fromkeys(watch.job_id for watch in watches if watch.index is None))
        for chunk in chunks(ends, STATES_PER_CALL):
            with our_errors(self._jobs.where), self._jobs.client.pipeline(transaction=False) as pipe:
                for job_id in chunk:
                    pipe.hget(keys.job(job_id), "state")
                states = pipe.execute()
            news = zip(chunk, states, strict=True)
            self._tell_ends([job_id for job_id, state in news if not state or JobState(state).is_terminal])
        self._tell_pieces([watch for watch in watches if watch.index is not None and not watch.is_over])
        self._jobs.has_answered = True

    def hear(self, lines: Iterable[str]) -> None:
        """Fetch what events say has changed, for all who wait in one go. A line is ``id tokens state``."""
        ended: dict[str, None] = {}
        grown: dict[int, Watch] = {}
        with self.lock:
            for line in lines:
                job_id, _, rest = line.partition(" ")
                for watch in list(self.watched.get(job_id, ())):
                    if watch.index is not None:
                        grown[id(watch)] = watch
                    elif not rest.endswith(" running"):
                        ended[job_id] = None
        self._tell_ends(list(ended))
        self._tell_pieces(list(grown.values()))

    def fail(self, error: FarmError, watches: Iterable[Watch] | None = None) -> None:
        """Give these, or all, an error as their last news."""
        with self.lock:
            found = [watch for watch in (self.everyone() if watches is None else watches) if self._forget(watch)]
        for watch in found:
            watch.tell(watch.job_id, error)

    def _forget(self, watch: Watch) -> bool:
        """Take a watch off the list, under the lock. False if it was off already."""
        if watch.is_over:
            return False
        watch.is_over = True
        self._remove(watch)
        return True

    def _remove(self, watch: Watch) -> None:
        others = self.watched.get(watch.job_id, [])
        if watch in others:
            others.remove(watch)
        if not others:
            self.watched.pop(watch.job_id, None)

    def _tell_ends(self, job_ids: Sequence[str]) -> None:
        for chunk in chunks(job_ids, VIEWS_PER_CALL):
            for job_id, view in zip(chunk, self._jobs.views(chunk), strict=True):
                if view is None:
                    self._end(job_id, self._missing(job_id))
                elif view.state.is_terminal:
                    self._end(job_id, view)

    def _tell_pieces(self, watches: Sequence[Watch]) -> None:
        for chunk in chunks(watches, VIEWS_PER_CALL):
            pieces = self._jobs.pieces([(watch.job_id, watch.index or 0) for watch in chunk])
            for watch, piece in zip(chunk, pieces, strict=True):
                if piece is None:
                    self._end(watch.job_id, self._missing(watch.job_id))
                else:
                    self._tell_piece(watch, piece)

    def _tell_piece(self, watch: Watch, piece: Piece) -> None:
        """Pass on what is new in a piece: another thread may have told its beginning meanwhile."""
        with self.lock:
            assert watch.index is not None
            if watch.is_over or piece.restarts < (watch.restarts or 0):
                return
            if watch.index and watch.restarts is not None and watch.restarts < piece.restarts:
                self._forget(watch)
                watch.tell(watch.job_id, AnswerRestarted(_RESTARTED.format(id=watch.job_id, tokens=watch.index)))
                return
            watch.restarts = piece.restarts
            known = watch.index - piece.start
            new = piece.tokens[known:]
            if not (new or piece.state.is_terminal):
                return
            told = Piece(piece.state, watch.index, new, piece.tail, piece.logprobs[known:], piece.restarts)
            watch.index += len(new)
            if piece.state.is_terminal:
                self._forget(watch)
            watch.tell(watch.job_id, told)  # under the lock, which keeps pieces in order

    def _missing(self, job_id: str) -> FarmError | None:
        try:
            self._jobs.view(job_id)
        except JobNotFound as error:
            return error
        return None  # it is there again

    def _end(self, job_id: str, news: JobView | FarmError | None) -> None:
        """Give a job's last news to all who wait for its end; an error to its readers too."""
        if news is None:
            return
        with self.lock:
            found = [
                watch
                for watch in list(self.watched.get(job_id, ()))
                if watch.index is None or isinstance(news, FarmError)
            ]
            found = [watch for watch in found if self._forget(watch)]
        for watch in found:
            watch.tell(job_id, news)


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in runs of at most ``size``."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
