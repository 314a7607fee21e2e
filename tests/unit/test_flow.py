"""The bookkeeping of map and as_completed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from farm.contracts import parse_request
from farm.errors import FarmError, InvalidRequest, JobCancelled, JobNotFound
from farm.flow import MOST_RESUBMISSIONS, Flow
from farm.ledger.records import Submission

REQUEST = parse_request({"prompt": "x"})


def submission(number: int) -> Submission:
    return Submission(f"job-{number}", REQUEST, "tiny-bloom", "default")


def ended(number: int) -> FarmError:
    """A result that can be told from others."""
    return JobCancelled(f"job-{number}")


@given(st.integers(1, 40), st.booleans(), st.integers(0, 120), st.data())
def test_every_prompt_has_one_result(window: int, is_ordered: bool, total: int, data: st.DataObject) -> None:
    """Whatever order jobs end in: each place is delivered once, in order if asked, and the window holds."""
    flow = Flow(window, is_ordered)
    drawn = 0
    delivered: list[str] = []
    ends: list[str] = []
    while True:
        wanted = min(flow.wants, total - drawn)
        flow.admit([submission(number) for number in range(drawn, drawn + wanted)])
        drawn += wanted
        assert drawn - len(delivered) <= window
        if flow.flying:
            job_id = data.draw(st.sampled_from(flow.flying))
            flow.hear(job_id, ended(int(job_id.removeprefix("job-"))))
            ends.append(job_id)
        delivered += [str(result) for result in flow.ready()]
        if drawn == total and flow.is_empty:
            break
        assert flow.flying or flow.wants
    assert delivered == (sorted(ends, key=lambda one: int(one[4:])) if is_ordered else ends)
    assert len(delivered) == total


def test_a_forgotten_job_is_sent_again_a_few_times() -> None:
    """A job that the server forgot is submitted again, but not for ever."""
    flow = Flow(1, True)
    flow.admit([submission(1)])
    for _ in range(MOST_RESUBMISSIONS):
        assert flow.hear("job-1", JobNotFound("gone")) == submission(1)
        assert not list(flow.ready())
    assert flow.hear("job-1", JobNotFound("gone")) is None
    assert [type(result) for result in flow.ready()] == [JobNotFound]
    flow.adopt(["job-2"])
    assert flow.hear("job-2", JobNotFound("gone")) is None
    assert [type(result) for result in flow.ready()] == [JobNotFound]


def test_a_bad_prompt_keeps_its_place() -> None:
    """Errors at submission stand in line like results."""
    flow = Flow(10, True)
    flow.admit([submission(1), InvalidRequest("prompt", "is empty"), submission(3)])
    flow.refuse({"job-3": ended(3)})
    assert not list(flow.ready())
    flow.hear("job-1", ended(1))
    assert [str(result) for result in flow.ready()] == ["job-1", "prompt: is empty", "job-3"]
    assert flow.is_empty
