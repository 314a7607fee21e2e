"""What all requests of one process share: the ledger, its reader, a few threads. The routes' one way to the farm."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, TypeVar

import structlog

from api.batching import Batcher
from api.newsroom import Newsroom
from farm.calls import Calls
from farm.egress import Egress, parse_target
from farm.errors import FarmError, JobNotFound, ServerUnreachable
from farm.ledger.forecast import Standing
from farm.ledger.jobs import SUBMIT_CHUNK, Jobs
from farm.ledger.records import Submission
from farm.ledger.streams import Reader
from farm.ledger.watch import Watch
from farm.prompts import PromptCheck
from farm.results import JobView
from farm.settings import Settings

log = structlog.get_logger(__name__)

THREADS = 4
STORE_THREADS = 8  # a file store may be slow; what waits for it must not hold up anything else
VIEWS_PER_CALL = 100
WATCHES_PER_CALL = 500

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Written:
    """A job that stands in the ledger now. Not new: the same one was there before."""

    is_new: bool
    standing: Standing


class Service:
    """The farm for one event loop. Nothing is sent before the first request."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError when no server is named."""
        self.settings = settings
        self.jobs = Jobs(settings)
        self.checks = PromptCheck(self.jobs)
        self._reader = Reader(self.jobs)
        self._calls = Calls(THREADS, settings.redis.timeout_s, "api-call")
        self._store_threads = ThreadPoolExecutor(STORE_THREADS, thread_name_prefix="api-store")
        self._egress = Egress(settings.webhooks.allowed)
        self._batchers: list[Batcher[Any, Any]] = []
        self._submits = self.batcher(self._submit_each, SUBMIT_CHUNK)
        self._views = self.batcher(self._view_each, VIEWS_PER_CALL)
        self._watches = self.batcher(self._watch_all, WATCHES_PER_CALL)
        self.news = Newsroom(self._reader, self._watches, settings.api.max_streams)

    async def submit(self, submission: Submission) -> Written:
        """Write a job, or find the same one there.

        Raises IdempotencyConflict, QuotaExceeded, ExceedsQuota, QueueFull, DeadlineUnmeetable, ServerFull,
        ServerUnreachable.
        """
        return await self._submits(submission)

    async def submit_list(self, submissions: Sequence[Submission]) -> list[Written]:
        """Write jobs of one list. Raises like ``submit``."""
        return await self.call(self._submit_all, submissions)

    async def view(self, job_id: str, tenant: str) -> JobView:
        """A tenant's job. Raises JobNotFound, also for another tenant's job; JobGone; ServerUnreachable."""
        view = await self._views(job_id)
        if view.tenant != tenant:
            raise unknown(job_id)
        return view

    async def ended(self, job_id: str, wait_s: float) -> JobView:
        """The job once it has ended; or as it stands after ``wait_s``, or when the server is about to stop."""
        async with self.news.listening(job_id) as listener:
            heard = await listener.next(wait_s)
        if heard and isinstance(heard[-1], FarmError):
            raise heard[-1]
        return heard[-1] if heard and isinstance(heard[-1], JobView) else await self._views(job_id)

    async def cancel_quietly(self, job_ids: Sequence[str]) -> None:
        """Cancel jobs that nobody waits for any more. Without an answer they run to their end, which harms nobody."""
        try:
            await self.call(self.jobs.cancel, job_ids)
        except ServerUnreachable:
            log.warning("left jobs running", jobs=len(job_ids))

    async def call(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run something that blocks on a thread."""
        return await self._calls.run(partial(call, *args, **kwargs))

    async def call_store(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run something that waits for the file store."""
        return await asyncio.get_running_loop().run_in_executor(self._store_threads, partial(call, *args, **kwargs))

    def check_webhook(self, url: str | None) -> None:
        """Raise TargetRefused for a webhook of which it is plain that it would never be called."""
        if url is not None:
            self._egress.check(parse_target(url))

    def batcher(self, call: Callable[[list[T]], Sequence[R | Exception]], most: int) -> Batcher[T, R]:
        """A batcher that ends with the service."""
        made = Batcher(call, most)
        self._batchers.append(made)
        return made

    def stop(self) -> None:
        """Have streams and long polls end, so that the server can."""
        self.news.stop()

    async def aclose(self) -> None:
        """Let go of threads and connections. Jobs run on."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._reader.close()
        for batcher in self._batchers:
            batcher.close()
        self._calls.close()
        self._store_threads.shutdown()
        self.jobs.client.close()

    # On a thread.

    def _submit_all(self, submissions: Sequence[Submission]) -> list[Written]:
        are_new = self.jobs.submit(submissions)
        standings = self.jobs.standings([submission.id for submission in submissions])
        return [Written(is_new, standing) for is_new, standing in zip(are_new, standings, strict=True)]

    def _submit_each(self, submissions: list[Submission]) -> list[Written | Exception]:
        answers = self.jobs.submit_each(submissions)
        pairs = zip(submissions, answers, strict=True)
        standings = iter(self.jobs.standings([job.id for job, answer in pairs if not isinstance(answer, FarmError)]))
        return [answer if isinstance(answer, FarmError) else Written(answer, next(standings)) for answer in answers]

    def _view_each(self, job_ids: list[str]) -> list[JobView | Exception]:
        views = self.jobs.views(job_ids)
        placed = iter(self.jobs.placed([view for view in views if view is not None]))
        return [
            self._missing(job_id) if view is None else next(placed) for job_id, view in zip(job_ids, views, strict=True)
        ]

    def _missing(self, job_id: str) -> Exception:
        error = self.jobs.missing(job_id)
        return unknown(job_id) if type(error) is JobNotFound else error

    def _watch_all(self, watches: list[Watch]) -> list[None]:
        self._reader.watch(watches)
        return [None] * len(watches)


def unknown(job_id: str) -> JobNotFound:
    """The error for a job that is not there, and for one that is none of the caller's business."""
    return JobNotFound(f"job {job_id[:128]} is unknown; check the id")
