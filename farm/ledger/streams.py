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
from queue import SimpleQueue
from typing import Any

import redis

from farm import keys
from farm.connection import connect, our_errors
from farm.errors import FarmError, ServerUnreachable
from farm.ledger.jobs import Jobs
from farm.ledger.watch import STATES_PER_CALL, News, Watch, Watchers, chunks
from farm.logs import origin
from farm.patience import FIRST_PAUSE_S, longer

ENTRIES_PER_READ = 1_000
LONGEST_BLOCK_S = 5.0
LINGER_S = 5.0  # the thread outlives its last waiter this long, so that call after call finds it running
REREAD_SHARE = 20  # reading all states again takes at most a twentieth of the thread's time

log = logging.getLogger(__name__)


class Reader:
    """The one reader of the events. Its thread runs while somebody waits. Thread-safe."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._settings = jobs.settings.client
        self._watchers = Watchers(jobs)
        self._lock = self._watchers.lock
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._connection_id: int | None = None
        self._idle_since: float | None = None
        self._failing_since: float | None = None
        self._questions: list[tuple[Sequence[Watch], Callable[[], object] | None]] = []
        self._asking: threading.Thread | None = None
        self.trouble: ServerUnreachable | None = None
        """Why nothing can be heard now, if that is so."""

    @property
    def watched(self) -> dict[str, list[Watch]]:
        """Who waits, by job; for reading only."""
        return self._watchers.watched

    @property
    def is_closed(self) -> bool:
        return self._closing.is_set()

    @contextlib.contextmanager
    def watching(
        self, job_ids: Iterable[str], *, start: int | None = None, asked: Callable[[], object] | None = None
    ) -> Iterator[SimpleQueue[tuple[str, News]]]:
        """News of jobs in a queue: their ends, or with ``start`` their tokens from that index on.

        asked: do not wait for the server; call this, from another thread, once it has said how the jobs stand.
        Without it, raises ServerUnreachable if the server has never answered this client.
        """
        inbox: SimpleQueue[tuple[str, News]] = SimpleQueue()
        watches = [Watch(job_id, lambda *news: inbox.put(news), start=start) for job_id in job_ids]
        try:
            if asked is not None:
                self.ask(watches, asked)
            else:
                for some in chunks(watches, STATES_PER_CALL):
                    with self._jobs.in_time():
                        self.watch(some)
            yield inbox
        finally:
            self.unwatch(watches)

    def watch(self, watches: Sequence[Watch]) -> None:
        """Tell these how their jobs stand, and go on telling until the jobs end or ``unwatch``.

        An outage is borne like one that comes later. Raises ServerUnreachable if the server has never answered this
        client; then none is watched, and it may be tried again.
        """
        self._register(watches)
        try:
            self._watchers.look(watches)
        except ServerUnreachable:
            if not self._jobs.has_answered:
                self._watchers.remove(watches)
                raise
        except BaseException:
            self._watchers.remove(watches)
            raise

    def ask(self, watches: Sequence[Watch], asked: Callable[[], object] | None = None) -> None:
        """Like ``watch``, but return at once: an error is told as news.

        asked: called, from another thread, when the server has been asked and what it said is told.
        """
        self._register(watches)
        with self._lock:
            self._questions.append((watches, asked))
            if self._asking is None:
                self._asking = threading.Thread(target=self._ask, name="farm-asks", daemon=True)
                self._asking.start()

    def unwatch(self, watches: Iterable[Watch]) -> None:
        """Tell these nothing more, ever. Does not ask the server."""
        self._watchers.forget(watches)

    def close(self) -> None:
        """Stop the threads; those who still wait are told that the client is closed."""
        with self._lock:
            self._closing.set()
            thread, asking, connection_id = self._thread, self._asking, self._connection_id
        self._watchers.fail(FarmError("the farm's client was closed while waiting; the job runs on"))
        deadline = time.monotonic() + LONGEST_BLOCK_S
        while _runs(thread) and time.monotonic() < deadline:
            # Again and again: the thread may have been about to block when it was unblocked.
            with contextlib.suppress(FarmError, redis.exceptions.RedisError), our_errors(self._jobs.where):
                if connection_id is not None:
                    self._jobs.client.client_unblock(connection_id)
            assert thread is not None
            thread.join(timeout=0.05)
        if asking is not None and _runs(asking):
            asking.join(max(0.0, deadline - time.monotonic()))

    def _register(self, watches: Sequence[Watch]) -> None:
        with self._lock:
            if self.is_closed:
                raise FarmError("the farm's client is closed; make another one")
            self._watchers.add(watches)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="farm-events", daemon=True)
                self._thread.start()

    # The thread that asks for those who must not be held up. It ends when there is nothing to ask.

    def _ask(self) -> None:
        while True:
            with self._lock:
                questions, self._questions = self._questions, []
                if not questions:
                    self._asking = None
                    return
            watches = [watch for some, _ in questions for watch in some]
            try:
                with self._jobs.in_time():
                    self._watchers.look(watches)
            except ServerUnreachable as error:
                if not self._jobs.has_answered:
                    self._watchers.fail(error, watches)
            except Exception as error:
                log.error("asking for jobs failed: %s", origin(error))  # noqa: TRY400 (its text may hold an answer)
                self._watchers.fail(FarmError(f"waiting failed: {error}"), watches)
            for _, asked in questions:
                if asked is not None:
                    asked()

    # The thread that reads events.

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
            log.error("the reader of events failed: %s", origin(error))  # noqa: TRY400
            with self._lock:
                self._thread = None
            self._watchers.fail(FarmError(f"waiting failed: {error}"))
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
            if self.is_closed or is_idle:
                self._thread = self._connection_id = self._idle_since = None
                self._failing_since = self.trouble = None
                return False
            return True

    def _follow(self, client: redis.Redis, block_s: float) -> None:
        """Read events until nobody waits. The place among the events comes first, the states after it."""
        self._connection_id = client.client_id()
        cursor = _last_id(client)
        self._watchers.look(self._watchers.everyone())
        self._failing_since = self.trouble = None
        look_at = time.monotonic() + self._settings.reread_s
        while self._is_needed():
            wait_s = max(0.001, min(block_s, look_at - time.monotonic()))
            entries = _read(client, cursor, wait_s)
            if entries:
                cursor = entries[-1][0]
                self._watchers.hear(line for _, fields in entries for line in fields.get("j", "").split("\n"))
            if time.monotonic() >= look_at:
                started = time.monotonic()
                last = _last_id(client)
                if _order(last) < _order(cursor):  # trimmed to nothing, or another server's data
                    cursor = last
                self._watchers.look(self._watchers.everyone())
                ended = time.monotonic()
                look_at = ended + max(self._settings.reread_s, REREAD_SHARE * (ended - started))

    def _bear(self, error: ServerUnreachable, pause_s: float) -> float:
        """Wait out an outage; after ``client.outage_s`` tell everyone. Returns the next pause."""
        now = time.monotonic()
        self.trouble = error
        if self._failing_since is None:
            self._failing_since, pause_s = now, FIRST_PAUSE_S
        if now - self._failing_since >= self._settings.outage_s:
            self._watchers.fail(error)
            self._failing_since = None
        self._closing.wait(pause_s)
        return longer(pause_s)


def _runs(thread: threading.Thread | None) -> bool:
    return thread is not None and thread is not threading.current_thread() and thread.is_alive()


def _read(client: redis.Redis, cursor: str, wait_s: float) -> list[tuple[str, dict[str, str]]]:
    answer: Any = client.xread({keys.EVENTS: cursor}, count=ENTRIES_PER_READ, block=max(1, int(wait_s * 1000)))
    return list(answer[0][1]) if answer else []


def _last_id(client: redis.Redis) -> str:
    latest = client.xrevrange(keys.EVENTS, count=1)
    return str(latest[0][0]) if latest else "0-0"


def _order(event_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = event_id.partition("-")
    return int(milliseconds), int(sequence or 0)
