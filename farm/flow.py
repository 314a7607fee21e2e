"""Many prompts with few jobs in flight: the bookkeeping of ``map`` and ``as_completed``, without any waiting or I/O.

``Farm`` and ``AsyncFarm`` drive it: they draw prompts, submit what ``admit`` returns and pass on what the reader tells.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from farm.contracts import JobState
from farm.errors import (
    FarmError,
    InvalidRequest,
    JobCancelled,
    JobDead,
    JobExpired,
    JobFailed,
    JobNotFound,
    JobNotSucceeded,
)
from farm.ledger.records import Piece, Submission
from farm.ledger.watch import News
from farm.results import Completion, JobView

Result = Completion | FarmError
DEFAULT_WINDOW = 256
CHUNK = 100
MOST_RESUBMISSIONS = 3


def result_of(news: News) -> Result:
    """The completion in a job's last news, or the error that its state means."""
    if isinstance(news, FarmError):
        return news
    assert isinstance(news, JobView)
    return news.completion() if news.state is JobState.SUCCEEDED else not_succeeded(news)


def not_succeeded(job: JobView) -> JobNotSucceeded:
    """The error for a job that ended without a completion, naming the reason and how far it came."""
    came = f"after {job.usage.completion_tokens:,} tokens, attempt {job.attempt}"
    why = f": {job.error.message}" if job.error else ""
    code = f" ({job.error.code})" if job.error else ""
    if job.state is JobState.FAILED:
        return JobFailed(f"job {job.id} failed {came}{code}{why}", job)
    if job.state is JobState.DEAD:
        return JobDead(f"job {job.id} was given up {came}{code}{why}; farm dead retry queues it again", job)
    if job.state is JobState.EXPIRED:
        return JobExpired(f"job {job.id} passed its deadline {came}; give it more time with deadline_s", job)
    return JobCancelled(f"job {job.id} was cancelled {came}", job)


@dataclass
class _Place:
    """One prompt's place in line: its job while it is in flight, its result after that."""

    submission: Submission | None = None
    result: Result | None = None
    resubmissions: int = 0


@dataclass
class Flow:
    """Places in line, at most ``window`` of them from the drawing of a prompt to the delivery of its result."""

    window: int
    is_ordered: bool
    _line: deque[_Place] = field(default_factory=deque)
    _flying: dict[str, list[_Place]] = field(default_factory=dict)
    _held: int = 0

    def __post_init__(self) -> None:
        if self.window < 1:
            raise InvalidRequest("window", f"{self.window} is out of range; give 1 or more jobs in flight")

    @property
    def wants(self) -> int:
        """How many prompts to draw now: none until a call to submit is worth it."""
        room = self.window - self._held
        return min(CHUNK, room) if room >= min(CHUNK, max(1, self.window // 8)) or not self._flying else 0

    @property
    def is_empty(self) -> bool:
        return self._held == 0

    @property
    def flying(self) -> list[str]:
        """Jobs whose end is not known yet."""
        return list(self._flying)

    def admit(self, placed: Iterable[Submission | FarmError]) -> list[Submission]:
        """Put prompts in line. Returns what to submit; for a prompt that broke a rule its error is the result."""
        admitted = []
        for submission in placed:
            if isinstance(submission, FarmError):
                self._settle(self._enter(_Place()), submission)
            else:
                self._flying.setdefault(submission.id, []).append(self._enter(_Place(submission)))
                admitted.append(submission)
        return admitted

    def refuse(self, refused: Mapping[str, FarmError]) -> None:
        """Note submissions that the ledger refused, by id."""
        for job_id, error in refused.items():
            for place in self._flying.pop(job_id, ()):
                self._settle(place, error)

    def adopt(self, job_ids: Iterable[str]) -> None:
        """Put jobs in line that are submitted already."""
        for job_id in job_ids:
            self._flying.setdefault(job_id, []).append(self._enter(_Place()))

    def hear(self, job_id: str, news: News) -> Submission | None:
        """Note a job's end. Returns its submission when a restored server has forgotten it: send it again."""
        if isinstance(news, Piece):
            return None
        places = self._flying.get(job_id, [])
        if isinstance(news, JobNotFound):
            for place in places:
                if place.submission is not None and place.resubmissions < MOST_RESUBMISSIONS:
                    place.resubmissions += 1
                    return place.submission
        for place in self._flying.pop(job_id, ()):
            self._settle(place, result_of(news))
        return None

    def ready(self) -> Iterator[Result]:
        """Results to deliver now, in order if that was asked for."""
        while self._line and (result := self._line[0].result) is not None:
            self._line.popleft()
            self._held -= 1
            yield result

    def _enter(self, place: _Place) -> _Place:
        self._held += 1
        if self.is_ordered:
            self._line.append(place)
        return place

    def _settle(self, place: _Place, result: Result) -> None:
        place.result, place.submission = result, None
        if not self.is_ordered:
            self._line.append(place)
