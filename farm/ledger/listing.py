"""A tenant's jobs, page by page, the newest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from farm import keys
from farm.connection import our_errors
from farm.contracts import JobState
from farm.errors import InvalidRequest, nearest
from farm.ledger.jobs import Jobs
from farm.ledger.tenants import check_name
from farm.results import JobView

MOST = 100
LOOKS = 1_000  # jobs that one call looks at to find those in a state
STEP = 200
SHOWN = tuple(state.value for state in JobState if state is not JobState.DISPATCHED)


@dataclass(frozen=True, slots=True)
class Page:
    """Some of a tenant's jobs. ``next_after`` leads to the next page; None after the last one.

    A page may hold fewer jobs than asked for, or none, and still have a next one: a search among many gives up early.
    """

    views: list[JobView]
    next_after: str | None


def list_jobs(
    jobs: Jobs, tenant: str, *, state: JobState | None = None, after: str | None = None, limit: int = 20
) -> Page:
    """A tenant's jobs in order of submission, the newest first; only those in ``state``, if one is given.

    after: ``next_after`` of the page before; jobs that came meanwhile are not on it, and none is on two pages. Those in
    ``queued`` include the dispatched ones. Raises InvalidRequest (tenant, limit, after), ServerUnreachable.
    """
    check_name(tenant)
    if not 1 <= limit <= MOST:
        raise InvalidRequest("limit", f"{limit} is out of range; give 1 to {MOST}")
    if after is not None and not (after.isascii() and after.isdigit() and len(after) < 17):
        raise InvalidRequest("after", f"{after[:60]!r} is no place in a list; give next_after of the page before")
    found, place, is_last = _find(jobs, tenant, state, after, limit)
    views = [view for view in jobs.views(found) if view is not None]
    return Page(views, None if is_last else place)


def each_job(
    jobs: Jobs, tenant: str, *, state: JobState | str | None = None, limit: int | None = None
) -> Iterator[JobView]:
    """A tenant's jobs, the newest first, page after page as they are asked for; ``limit`` of them at the most.

    Raises InvalidRequest (tenant, state, limit), ServerUnreachable.
    """
    wanted, after, left = state_of(state), None, limit
    while left is None or left > 0:
        page = list_jobs(jobs, tenant, state=wanted, after=after, limit=MOST if left is None else min(MOST, left))
        yield from page.views
        left = None if left is None else left - len(page.views)
        if (after := page.next_after) is None:
            return


def state_of(name: str | None) -> JobState | None:
    """A state by its name. Raises InvalidRequest for one that people never see."""
    if name is None:
        return None
    if name not in SHOWN:
        raise InvalidRequest("state", f"{name[:60]!r} is no state{nearest(name, SHOWN)}; known: {', '.join(SHOWN)}")
    return JobState(name)


def _find(
    jobs: Jobs, tenant: str, state: JobState | None, after: str | None, limit: int
) -> tuple[list[str], str | None, bool]:
    """Ids of up to ``limit`` jobs, the place of the last job looked at, and whether it is the last there is."""
    found: list[str] = []
    looks, place = 0, after
    while looks < LOOKS:
        # One more than needed tells whether there is a next page.
        count = limit - len(found) + 1 if state is None else STEP
        seen = _look(jobs, tenant, place, count)
        for job_id, seq, shown in seen:
            if len(found) == limit:
                return found, place, False
            place = str(seq)
            if shown is not None and state in (None, shown):
                found.append(job_id)
        looks += len(seen)
        if len(seen) < count:
            return found, place, True
    return found, place, False


def _look(jobs: Jobs, tenant: str, place: str | None, count: int) -> list[tuple[str, int, JobState | None]]:
    """The next jobs below a place: id, place and the state that people see.

    The state is None for what is no job of this tenant's any more; that is taken off the list.
    """
    with our_errors(jobs.where), jobs.client.pipeline(transaction=False) as pipe:
        upto = "+inf" if place is None else f"({place}"
        pipe.zrevrangebyscore(keys.jobs(tenant), upto, "-inf", start=0, num=count, withscores=True)
        [ids] = pipe.execute()
        for job_id, _ in ids:
            pipe.hmget(keys.job(job_id), "state", "tenant")
        answers = pipe.execute()
        seen = [
            (job_id, int(seq), _shown(state) if owner == tenant else None)
            for (job_id, seq), (state, owner) in zip(ids, answers, strict=True)
        ]
        for _, seq, shown in seen:
            if shown is None:
                # By its place: the id may be there again at another one by now.
                pipe.zremrangebyscore(keys.jobs(tenant), seq, seq)
        pipe.execute()
    return seen


def _shown(state: str) -> JobState:
    return JobState.QUEUED if state == JobState.DISPATCHED else JobState(state)
