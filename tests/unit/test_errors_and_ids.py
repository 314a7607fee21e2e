"""What every error says about itself, and what an id says about its job."""

from __future__ import annotations

import pickle
import subprocess
import sys
import uuid

import pytest

from farm import errors
from farm.contracts import created_at, new_job_id
from farm.errors import FarmError, InvalidRequest, PromptTooLong, nearest

pytestmark = pytest.mark.fast

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FarmError)]


@pytest.mark.parametrize("kind", ALL)
def test_an_error_says_what_programs_need(kind: type[FarmError]) -> None:
    """Each error has a code of its own, a retry rule, and an HTTP status that fits the rule."""
    assert kind.code.replace("_", "").isalpha()
    assert kind.code == kind.code.lower()
    assert isinstance(kind.retryable, bool)
    assert 400 <= kind.http_status < 600
    assert not kind.retryable or kind.http_status in (429, 503)
    assert (kind.__doc__ or "").strip()


def test_no_two_errors_share_a_code() -> None:
    """A code names one error; a subclass that only carries more has its parent's."""
    own = [kind.code for kind in ALL if "code" in vars(kind)]
    assert len(own) == len(set(own))


def test_errors_travel_between_processes() -> None:
    """An error that was raised in a worker can be raised again in its caller."""
    error = PromptTooLong.of(2310, 256, 2048)
    assert "2,310 prompt tokens + 256 max_tokens > 2,048" in str(error)
    for sent in (error, InvalidRequest("stop", "is odd"), errors.ServerFull("full"), errors.JobDead("dead")):
        got = pickle.loads(pickle.dumps(sent))  # noqa: S301
        assert (type(got), str(got)) == (type(sent), str(sent))


def test_the_nearest_name_is_suggested_only_when_it_is_near() -> None:
    """A hint helps with a slip of the finger and says nothing otherwise."""
    assert nearest("max_token", ["max_tokens", "stop"]) == "; did you mean 'max_tokens'?"
    assert nearest("zzz", ["max_tokens", "stop"]) == ""


def test_ids_sort_by_time_and_tell_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's id is a UUIDv7: ids sort in the order of their milliseconds, and hold them."""
    import time

    made = []
    for second in (1.0, 1.25, 1_800_000_000.5, 4_000_000_000.25):
        monkeypatch.setattr(time, "time", lambda second=second: second)
        made.append(new_job_id())
        assert created_at(made[-1]) == second
    assert made == sorted(made)
    assert {uuid.UUID(job_id).version for job_id in made} == {7}
    assert {uuid.UUID(job_id).variant for job_id in made} == {uuid.RFC_4122}


def test_ids_never_repeat() -> None:
    """Ids of the same millisecond differ."""
    assert len({new_job_id() for _ in range(5000)}) == 5000


@pytest.mark.parametrize("job_id", ["order-7", "", str(uuid.uuid5(uuid.NAMESPACE_OID, "x")), str(uuid.UUID(int=0))])
def test_other_ids_tell_no_time(job_id: str) -> None:
    """An id that is no UUIDv7 is not misread as one."""
    assert created_at(job_id) is None


def test_importing_the_farm_loads_no_queue_server_or_model_library() -> None:
    """``import farm`` costs next to nothing: what is heavy is loaded when it is first used."""
    heavy = ["torch", "celery", "kombu", "transformers", "redis", "pydantic"]
    code = f"import sys, farm; sys.exit(', '.join(n for n in {heavy} if n in sys.modules) or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_name_of_the_package_can_be_had() -> None:
    """All that ``farm`` lists is there, and a name that is not is an AttributeError."""
    import farm

    for name in farm.__all__:
        assert getattr(farm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Frm'"):
        farm.Frm  # noqa: B018
