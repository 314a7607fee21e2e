"""The jobs of one ``map`` that are in the farm: submitted, waited for, and cancelled when the caller leaves.

``farm.flow`` keeps the line, this speaks to the ledger; ``run`` drives both for ``Farm``, ``farm.aio_flight`` for
``AsyncFarm``.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

from farm.errors import FarmError, JobNotFound
from farm.flow import Flow, Result
from farm.job import Job
from farm.ledger.records import Submission
from farm.ledger.watch import News, Tell, Watch
from farm.prompts import Placer, Prompt
from farm.results import JobView

if TYPE_CHECKING:
    from farm.client import Farm

DRAW_S = 0.05  # a slow source of prompts must not hold up those drawn already

T = TypeVar("T")


class Flight:
    """What one ``map`` has in the farm. For one caller at a time; it rides out outages up to ``client.outage_s``."""

    def __init__(self, farm: Farm, flow: Flow, place: Placer, tell: Tell) -> None:
        self.flow = flow
        self._farm = farm
        self._place = place
        self._tell = tell
        self._watches: dict[str, Watch] = {}
        self._own: set[str] = set()
        self._is_left = False

    def board(self, prompts: Sequence[Prompt], job_ids: Iterable[str]) -> None:
        """Submit prompts, take jobs up that are submitted already, and watch both."""
        self._farm.flights.add(self)
        self.flow.adopt(job_ids)
        self._send(self.flow.admit(self._farm.patiently(partial(self._place.attempt, prompts))))
        self._watch(self.flow.flying)

    def hear(self, job_id: str, news: News) -> Submission | None:
        """Note a job's end, without asking the server. Returns what to ``resend`` if a restored server forgot it."""
        self._watches.pop(job_id, None)
        if isinstance(news, JobView | JobNotFound):
            self._own.discard(job_id)
        return self.flow.hear(job_id, news)

    def resend(self, lost: Submission) -> None:
        """Submit a job again, and watch it."""
        self._send([lost])
        self._watch([lost.id])

    def leave(self) -> None:
        """Wait for nothing any more, and cancel the jobs that were submitted here and have not ended."""
        self._is_left = True
        self._farm.reader.unwatch(self._watches.values())
        self._watches.clear()
        own, self._own = self._own, set()
        self._farm.abandon(own)
        self._farm.flights.discard(self)

    def _send(self, submissions: Sequence[Submission]) -> None:
        # A job whose id nobody else can know is ours, even if we are interrupted before the server's answer.
        self._own.update(job.id for job in submissions if not job.is_keyed)
        new, refused = self._farm.send(submissions)
        self._own.update(new)
        self.flow.refuse(refused)
        if self._is_left:  # meanwhile, in another thread
            self.leave()

    def _watch(self, job_ids: Iterable[str]) -> None:
        new = {job_id: Watch(job_id, self._tell) for job_id in job_ids if job_id not in self._watches}
        self._watches.update(new)
        self._farm.reader.watch(list(new.values()))


def run(farm: Farm, flow: Flow, place: Placer, source: Iterator[Prompt | Job]) -> Generator[Result, None, None]:
    """Results as ``flow`` has them ready. Leaving it early, by whatever way, ends the flight."""
    inbox: SimpleQueue[tuple[str, News]] = SimpleQueue()
    flight = Flight(farm, flow, place, lambda *news: inbox.put(news))
    is_drained = False

    def hear(job_id: str, news: News) -> None:
        if (lost := flight.hear(job_id, news)) is not None:
            flight.resend(lost)

    try:
        while True:
            if not is_drained and (wanted := flow.wants):
                items, is_drained = draw(source, wanted)
                flight.board(
                    [item for item in items if not isinstance(item, Job)],
                    [item.id for item in items if isinstance(item, Job)],
                )
            while not inbox.empty():
                hear(*inbox.get())
            yield from flow.ready()
            if is_drained and flow.is_empty:
                return
            if is_drained or not flow.wants:
                hear(*inbox.get())
    finally:
        flight.leave()


def deliver(flow: Generator[Result, None, None], return_exceptions: bool) -> Iterator[Result]:
    """Results, with errors in their places if ``return_exceptions``, else up to the first one, which is raised."""
    try:
        for result in flow:
            if isinstance(result, FarmError) and not return_exceptions:
                raise result
            yield result
    finally:
        flow.close()


def draw(source: Iterator[T], most: int) -> tuple[list[T], bool]:
    """Up to ``most`` items, fewer from a slow source. Returns whether it has no more."""
    items: list[T] = []
    until = time.monotonic() + DRAW_S
    for item in islice(source, most):
        items.append(item)
        if time.monotonic() > until:
            return items, False
    return items, len(items) < most
