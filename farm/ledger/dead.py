"""Dead jobs, by hand: list them, queue them again, delete them. A job is dead once it took too many workers down."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from farm import keys
from farm.connection import our_errors
from farm.contracts import JobState, model_name
from farm.errors import FarmError, InvalidRequest, JobNotDead, JobNotFound
from farm.ledger.jobs import Jobs

PAGE = 500
CHUNK = 50  # jobs a call of a script: it gives each some twenty commands


Deed = Literal["retry", "purge", "show"]
ENDED: dict[Deed, str] = {
    "retry": "submit it anew",
    "purge": "like every job that has ended it is deleted after FARM_LIMITS__RETENTION_S",
    "show": "farm status shows it",
}
"""What to do instead with a job that has ended otherwise."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one id. Not done: ``state`` is what stood against it, None where no job is."""

    id: str
    is_done: bool
    state: JobState | None


def dead_ids(
    jobs: Jobs,
    *,
    limit: int | None = None,
    model: str | None = None,
    tenant: str | None = None,
    older_s: float = 0.0,
) -> list[str]:
    """Ids of dead jobs, the latest first: of a model, of a tenant, dead for ``older_s`` seconds, at most ``limit``.

    Raises InvalidRequest (limit), ServerUnreachable.
    """
    if limit is not None and limit < 1:
        raise InvalidRequest("limit", f"{limit} is out of range; give 1 or more jobs")
    if model is not None:
        model = model_name(model)
    latest_ms = _latest_ms(jobs, older_s)
    found: dict[str, None] = {}
    for page in _pages(jobs):
        with our_errors(jobs.where), jobs.client.pipeline(transaction=False) as pipe:
            for job_id, _ in page:
                pipe.hmget(keys.job(job_id), "model", "tenant")
            names = pipe.execute()
        for (job_id, died_ms), (its_model, its_tenant) in zip(page, names, strict=True):
            if its_model is None or died_ms > latest_ms or model not in (None, its_model):
                continue
            if tenant in (None, its_tenant):
                found[job_id] = None
            if len(found) == limit:
                return list(found)
    return list(found)


def dead_count(jobs: Jobs) -> int:
    """How many jobs are dead."""
    with our_errors(jobs.where):
        count: int = jobs.client.zcard(keys.DEAD)
    return count


def retry(jobs: Jobs, job_ids: Sequence[str], *, fresh: bool = False) -> list[Answer]:
    """Queue dead jobs again, each once, with no strikes. They go on from their tokens, or from none if ``fresh``.

    A deadline starts anew. What is not dead stays as it is. Raises ServerUnreachable: then some may be queued; asking
    again does not harm.
    """
    token = secrets.token_hex(8)

    def call(chunk: Sequence[str]) -> list[str]:
        words: list[str] = jobs.scripts.call("revive", token, int(fresh), *chunk)
        return words

    return _in_chunks(job_ids, call, "revived")


def purge(jobs: Jobs, job_ids: Sequence[str], *, older_s: float = 0.0) -> list[Answer]:
    """Delete dead jobs with all that is known of them. Raises ServerUnreachable: then some may be deleted."""
    latest_ms = _latest_ms(jobs, older_s)

    def call(chunk: Sequence[str]) -> list[str]:
        with our_errors(jobs.where):
            died = jobs.client.zmscore(keys.DEAD, list(chunk))
        words = jobs.scripts.call("purge", latest_ms, *chunk)
        # One that was there and is gone is deleted, also if an answer was lost and the script ran twice.
        return [word or ("purged" if at else "") for word, at in zip(words, died, strict=True)]

    return _in_chunks(job_ids, call, "purged")


def refusal(jobs: Jobs, answer: Answer, wanted: Deed) -> FarmError:
    """Why nothing was done for an id: JobNotDead with the state it is in, JobNotFound, JobGone."""
    try:
        state = answer.state or jobs.view(answer.id).state
    except JobNotFound as error:
        return error
    if state is JobState.DEAD:
        return JobNotDead(f"job {answer.id} died again just now; it was left alone")
    word = "queued" if state is JobState.DISPATCHED else state.value
    remedy = ENDED[wanted] if state.is_terminal or wanted == "show" else "wait for it, or cancel it"
    return JobNotDead(f"job {answer.id} is {word}, not dead; {remedy}")


def _in_chunks(job_ids: Sequence[str], call: Callable[[Sequence[str]], list[str]], done: str) -> list[Answer]:
    answers = []
    for start in range(0, len(job_ids), CHUNK):
        chunk = job_ids[start : start + CHUNK]
        for job_id, word in zip(chunk, call(chunk), strict=True):
            state = None if word in ("", done) else JobState(word)
            answers.append(Answer(job_id, word == done, state))
    return answers


def _pages(jobs: Jobs) -> Iterator[list[tuple[str, float]]]:
    start = 0
    while True:
        with our_errors(jobs.where):
            page: Any = jobs.client.zrevrange(keys.DEAD, start, start + PAGE - 1, withscores=True)
        if not page:
            return
        yield page
        start += len(page)


def _latest_ms(jobs: Jobs, older_s: float) -> int:
    """The server's time, so long ago."""
    with our_errors(jobs.where):
        seconds, microseconds = jobs.client.time()
    return math.floor(seconds * 1000 + microseconds / 1000 - older_s * 1000)
