"""A tenant's jobs, page by page."""

from __future__ import annotations

import pytest

from farm import keys
from farm.contracts import JobState
from farm.errors import InvalidRequest
from farm.ledger.jobs import Jobs
from farm.ledger.listing import LOOKS, Page, each_job, list_jobs
from farm.settings import load_settings
from tests.integration.ledger.farmhand import Field


def ids(page: Page) -> list[str]:
    return [view.id for view in page.views]


def all_pages(field: Field, tenant: str, limit: int, state: JobState | None = None) -> list[list[str]]:
    """The ids of all pages, following next_after."""
    pages: list[list[str]] = []
    after = None
    while True:
        page = list_jobs(field.jobs, tenant, state=state, after=after, limit=limit)
        pages.append(ids(page))
        if page.next_after is None:
            return pages
        after = page.next_after


@pytest.mark.parametrize(("limit", "sizes"), [(3, [3, 3, 1]), (7, [7]), (8, [7]), (6, [6, 1])])
def test_pages_hold_each_job_once_the_newest_first(field: Field, limit: int, sizes: list[int]) -> None:
    """Following next_after from page to page gives all of a tenant's jobs and no other's, and then ends."""
    jobs = []
    for n in range(7):
        jobs += field.submit(tenant="ann", job_id=f"z{9 - n}" if n % 2 else None)
        field.submit(2, tenant="ben")
    pages = all_pages(field, "ann", limit)
    assert [len(page) for page in pages] == sizes
    assert [job for page in pages for job in page] == jobs[::-1]


def test_a_tenant_without_jobs_has_one_empty_page(field: Field) -> None:
    """Nobody's list is empty, and that is no error."""
    assert list_jobs(field.jobs, "nobody") == Page([], None)


def test_jobs_that_come_meanwhile_move_nothing(field: Field) -> None:
    """The second page goes on where the first one ended, whatever was submitted or has gone in between."""
    jobs = field.submit(6, tenant="ann")
    first = list_jobs(field.jobs, "ann", limit=2)
    field.submit(3, tenant="ann")
    field.jobs.cancel([jobs[4]])
    field.client.delete(keys.job(jobs[3]))
    second = list_jobs(field.jobs, "ann", limit=2, after=first.next_after)
    assert ids(second) == [jobs[2], jobs[1]]
    assert field.client.zscore(keys.jobs("ann"), jobs[3]) is None, "what is gone is taken off the list"
    field.client.flushall()


def test_a_list_of_one_state(field: Field) -> None:
    """A state leaves the others out; a job whose message is out is queued, as everywhere."""
    jobs = field.submit(8, tenant="ann")
    field.jobs.cancel(jobs[::2])
    field.worker(capacity=1)
    field.dispatch()
    cancelled = all_pages(field, "ann", 3, JobState.CANCELLED)
    assert [job for page in cancelled for job in page] == jobs[::2][::-1]
    assert all_pages(field, "ann", 9, JobState.QUEUED) == [jobs[1::2][::-1]]
    assert all_pages(field, "ann", 9, JobState.FAILED) == [[]]


def test_a_rare_state_is_searched_for_in_steps(field: Field) -> None:
    """One call looks at no more than a thousand jobs; an empty page with a next one says where to go on."""
    jobs = field.submit(LOOKS + 500, tenant="ann")
    field.jobs.cancel([jobs[0], jobs[1], jobs[-1]])
    pages = all_pages(field, "ann", 2, JobState.CANCELLED)
    assert pages == [[jobs[-1]], [jobs[1], jobs[0]]]
    assert all_pages(field, "ann", 2, JobState.DEAD) == [[], []]


def test_what_is_trimmed_is_off_the_list(field: Field) -> None:
    """Jobs past their retention leave the list with everything else of theirs, even after their hash went by itself."""
    jobs = field.submit(4, tenant="ann")
    field.jobs.cancel(jobs[:2])
    field.client.delete(keys.job(jobs[0]))
    field.jobs.settings = load_settings(redis={"url": field.jobs.settings.redis.url}, limits={"retention_s": 1})
    field.later(2_000)
    field.keep()
    assert field.client.zrange(keys.jobs("ann"), 0, -1) == jobs[2:]
    field.jobs.cancel(jobs[2:])
    field.later(2_000)
    field.keep()
    assert not field.client.exists(keys.jobs("ann")), "an idle tenant leaves nothing behind"


def test_an_id_used_again_is_listed_where_it_is_now(field: Field, jobs: Jobs) -> None:
    """An id whose job is long gone may come back, of another tenant too: the list of the old one drops it."""
    field.submit(tenant="ann", job_id="mine")
    field.submit(tenant="ann", job_id="other")
    field.jobs.cancel(["mine"])
    field.client.delete(keys.job("mine"))
    field.submit(tenant="ben", job_id="mine")
    assert (ids(list_jobs(jobs, "ann")), ids(list_jobs(jobs, "ben"))) == (["other"], ["mine"])
    field.client.flushall()


def test_each_job_goes_on_by_itself(field: Field) -> None:
    """Whoever goes through a tenant's jobs need not know of pages."""
    jobs = field.submit(250, tenant="ann")
    field.jobs.cancel(jobs[::25])
    assert [view.id for view in each_job(field.jobs, "ann")] == jobs[::-1]
    assert [view.id for view in each_job(field.jobs, "ann", limit=130)] == jobs[:-131:-1]
    assert [view.id for view in each_job(field.jobs, "ann", state="cancelled", limit=7)] == jobs[::25][:2:-1]
    assert list(each_job(field.jobs, "ann", limit=0)) == []
    with pytest.raises(InvalidRequest, match="did you mean 'failed'"):
        list(each_job(field.jobs, "ann", state="fialed"))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"limit": 0}, "give 1 to 100"), ({"limit": 101}, "give 1 to 100"), ({"after": "x"}, "give next_after")]
    + [({"after": after}, "give next_after") for after in ("", "-1", "1" * 17, "٣", "1 2")],
)
def test_a_wrong_question_is_refused(field: Field, wrong: dict[str, object], says: str) -> None:
    """A page's size and place are checked before anything is asked."""
    with pytest.raises(InvalidRequest, match=says):
        list_jobs(field.jobs, "ann", **wrong)  # type: ignore[arg-type]
