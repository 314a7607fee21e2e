"""Waiting for jobs without polling: one thread reads the ledger's events for everyone who waits in this process.

Whoever waits registers first and reads the state then; the thread takes its place in the events first and reads all
states then. So whatever happens is seen by one or the other. Events may still be lost (trimmed, a restored server), so
states are read again every ``client.reread_s``. After a lost connection the thread starts over.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import redis

from farm import keys
from farm.connection import connect, our_errors
from farm.contracts import JobState
from farm.errors import FarmError, JobNotFound, ServerUnreachable
from farm.ledger.jobs import Jobs, Piece
from farm.patience import FIRST_PAUSE_S, longer
from farm.results import JobView

STATES_PER_CALL = 500
VIEWS_PER_CALL = 100
ENTRIES_PER_READ = 1_000
LONGEST_BLOCK_S = 5.0
LINGER_S = 5.0  # the thread outlives its last waiter this long, so that call after call finds it running
REREAD_SHARE = 20  # reading all states again takes at most a twentieth of the thread's time

News = Piece | JobView | FarmError
Tell = Callable[[str, News], None]
T = TypeVar("T")
log = logging.getLogger(__name__)


class Watch:
    """Somebody who waits for one job.

    ``tell(job_id, news)`` is called from the reader's thread or from ``watch``'s, must be quick and must not raise.
    With ``start`` it gets a Piece whenever there are tokens from that index on, each once and in order, the last one
    with a terminal state; without it, the JobView once the job has ended. A FarmError is the last news as well.
    """

    __slots__ = ("index", "is_over", "job_id", "tell")

    def __init__(self, job_id: str, tell: Tell, *, start: int | None = None) -> None:
        self.job_id = job_id
        self.tell = tell
        self.index = start
        self.is_over = False


class Reader:
    """The one reader of the events. Its thread runs while somebody waits. Thread-safe."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._settings = jobs.settings.client
        self.watched: dict[str, list[Watch]] = {}  # by job; for reading only
        # Reentrant: collecting an abandoned stream calls ``unwatch`` in whatever thread allocates.
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._connection_id: int | None = None
        self._idle_since: float | None = None
        self._failing_since: float | None = None

    def watch(self, watches: Sequence[Watch]) -> None:
        """Tell these how their jobs stand, and go on telling until the jobs end or ``unwatch``.

        Raises ServerUnreachable if the server can't be asked now; then none is watched, and it may be tried again.
        """
        with self._lock:
            if self._closing.is_set():
                raise FarmError("the farm's client is closed; make another one")
            for watch in watches:
                if not watch.is_over:
                    self.watched.setdefault(watch.job_id, []).append(watch)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="farm-events", daemon=True)
                self._thread.start()
        try:
            self._look(watches)
        except BaseException:
            with self._lock:
                for watch in watches:
                    self._remove(watch)
            raise

    def unwatch(self, watches: Iterable[Watch]) -> None:
        """Tell these nothing more, ever. Does not ask the server."""
        with self._lock:
            for watch in watches:
                self._forget(watch)

    def close(self) -> None:
        """Stop the thread; those who still wait are told that the client is closed."""
        with self._lock:
            self._closing.set()
            thread, connection_id = self._thread, self._connection_id
        self._fail(FarmError("the farm's client was closed while waiting; the job runs on"))
        if thread is None or thread is threading.current_thread():
            return
        deadline = time.monotonic() + LONGEST_BLOCK_S
        while thread.is_alive() and time.monotonic() < deadline:
            # Again and again: the thread may have been about to block when it was unblocked.
            with contextlib.suppress(FarmError, redis.exceptions.RedisError), our_errors(self._jobs.where):
                if connection_id is not None:
                    self._jobs.client.client_unblock(connection_id)
            thread.join(timeout=0.05)

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

    def _everyone(self) -> list[Watch]:
        with self._lock:
            return [watch for watches in list(self.watched.values()) for watch in list(watches)]

    # The thread.

    def _run(self) -> None:
        patient = self._jobs.settings.redis.model_copy(update={"retries": 0})
        block_s = min(self._settings.reread_s, LONGEST_BLOCK_S)
        client = connect(patient, read_timeout_s=block_s + patient.timeout_s)
        pause_s = FIRST_PAUSE_S
        try:
            while True:
                try:
                    with our_errors(self._jobs.where):
                        self._follow(client, block_s)
                    return
                except ServerUnreachable as error:
                    pause_s = self._bear(error, pause_s)
                if not self._is_needed():
                    return
        except Exception as error:
            # Waiters must hear of it: nobody else will wake them. Those who come now get another thread.
            log.exception("the reader of events failed")
            with self._lock:
                self._thread = None
            self._fail(FarmError(f"waiting failed: {error}"))
        finally:
            client.close()

    def _is_needed(self) -> bool:
        """Whether somebody waits or did a moment ago. If not, this thread must end: the next waiter starts another."""
        with self._lock:
            now = time.monotonic()
            if self.watched:
                self._idle_since = None
            elif self._idle_since is None:
                self._idle_since = now
            is_idle = self._idle_since is not None and now - self._idle_since >= LINGER_S
            if self._closing.is_set() or is_idle:
                self._thread = self._connection_id = self._idle_since = None
                return False
            return True

    def _follow(self, client: redis.Redis, block_s: float) -> None:
        """Read events until nobody waits. The place among the events comes first, the states after it."""
        self._connection_id = client.client_id()
        cursor = _last_id(client)
        self._look(self._everyone())
        self._failing_since = None
        look_at = time.monotonic() + self._settings.reread_s
        while self._is_needed():
            wait_s = max(0.001, min(block_s, look_at - time.monotonic()))
            entries = _read(client, cursor, wait_s)
            if entries:
                cursor = entries[-1][0]
                self._hear(entries)
            if time.monotonic() >= look_at:
                started = time.monotonic()
                last = _last_id(client)
                if _order(last) < _order(cursor):  # trimmed to nothing, or another server's data
                    cursor = last
                self._look(self._everyone())
                ended = time.monotonic()
                look_at = ended + max(self._settings.reread_s, REREAD_SHARE * (ended - started))

    def _bear(self, error: ServerUnreachable, pause_s: float) -> float:
        """Wait out an outage; after ``client.outage_s`` tell everyone. Returns the next pause."""
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since, pause_s = now, FIRST_PAUSE_S
        if now - self._failing_since >= self._settings.outage_s:
            self._fail(error)
            self._failing_since = None
        self._closing.wait(pause_s)
        return longer(pause_s)

    def _hear(self, entries: list[tuple[str, dict[str, str]]]) -> None:
        """Fetch what the events say has changed, for all who wait in one go."""
        ended: dict[str, None] = {}
        grown: dict[int, Watch] = {}
        with self._lock:
            for _, fields in entries:
                for line in fields.get("j", "").split("\n"):
                    job_id, _, rest = line.partition(" ")
                    for watch in list(self.watched.get(job_id, ())):
                        if watch.index is not None:
                            grown[id(watch)] = watch
                        elif not rest.endswith(" running"):
                            ended[job_id] = None
        self._tell_ends(list(ended))
        self._tell_pieces(list(grown.values()))

    # What the caller of ``watch`` does too.

    def _look(self, watches: Sequence[Watch]) -> None:
        """Read states, and tell those whose jobs have news."""
        ends = list(dict.fromkeys(watch.job_id for watch in watches if watch.index is None))
        for chunk in chunks(ends, STATES_PER_CALL):
            with our_errors(self._jobs.where), self._jobs.client.pipeline(transaction=False) as pipe:
                for job_id in chunk:
                    pipe.hget(keys.job(job_id), "state")
                states = pipe.execute()
            news = zip(chunk, states, strict=True)
            self._tell_ends([job_id for job_id, state in news if not state or JobState(state).is_terminal])
        self._tell_pieces([watch for watch in watches if watch.index is not None and not watch.is_over])

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
        with self._lock:
            assert watch.index is not None
            known = watch.index - piece.start
            new = piece.tokens[known:]
            if watch.is_over or not (new or piece.state.is_terminal):
                return
            told = Piece(piece.state, watch.index, new, piece.tail, piece.logprobs[known:])
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
        with self._lock:
            found = [
                watch
                for watch in list(self.watched.get(job_id, ()))
                if watch.index is None or isinstance(news, FarmError)
            ]
            found = [watch for watch in found if self._forget(watch)]
        for watch in found:
            watch.tell(job_id, news)

    def _fail(self, error: FarmError) -> None:
        with self._lock:
            found = self._everyone()
            for watch in found:
                self._forget(watch)
        for watch in found:
            watch.tell(watch.job_id, error)


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in runs of at most ``size``."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _read(client: redis.Redis, cursor: str, wait_s: float) -> list[tuple[str, dict[str, str]]]:
    answer: Any = client.xread({keys.EVENTS: cursor}, count=ENTRIES_PER_READ, block=max(1, int(wait_s * 1000)))
    return list(answer[0][1]) if answer else []


def _last_id(client: redis.Redis) -> str:
    latest = client.xrevrange(keys.EVENTS, count=1)
    return str(latest[0][0]) if latest else "0-0"


def _order(event_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = event_id.partition("-")
    return int(milliseconds), int(sequence or 0)
