"""What Flower keeps of events: pure functions and its state, without a broker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.flower import options, state
from farm.flower.redaction import facts, safe_event, safe_request
from farm.settings import load_settings
from workers.redaction import Figures, shown
from workers.tasks import _shown

SECRET = "zanzibar"
ID = "01980000-0000-7000-8000-000000000000"
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("uuid", "args", "kwargs", "result", "exception", "traceback", "timestamp", "name", "prompt")


def _event(kind: str, number: int = 0, **fields: Any) -> dict[str, Any]:
    at = 1_800_000_000.0 + number
    common = {"hostname": "w1@host", "timestamp": at, "local_received": at, "clock": number, "pid": 1, "utcoffset": 0}
    return {"type": kind, "uuid": f"job-{number}", **common, **fields}


@given(
    kind=st.sampled_from(["task-sent", "task-received", "task-failed", "task-odd"]),
    fields=st.dictionaries(st.sampled_from(FIELDS), VALUES),
)
def test_no_event_can_break_it(kind: str, fields: dict[str, Any]) -> None:
    """An event with anything in any field is taken."""
    assert safe_event({"type": kind, **fields})["type"] == kind


def test_arguments_of_strangers_are_not_kept() -> None:
    """Whatever a sender, another app's worker or a failing task put into an event, its words are not kept."""
    events = [
        _event("task-sent", args=repr([SECRET]), kwargs=repr({"prompt": SECRET, "max_tokens": 3})),
        _event("task-sent", kwargs=repr({"prompt": SECRET})[:9]),
        _event("task-received", args=repr([{"text": SECRET}]), kwargs={"model": SECRET + " " + SECRET}),
        _event("task-received", kwargs=repr({"job": SECRET, "priority": SECRET, "tokens": SECRET})),
        _event("task-succeeded", result=repr({"text": SECRET}), runtime=1.0),
        _event("task-succeeded", result=SECRET),
        _event("task-failed", exception=f"ValueError('{SECRET}')", traceback=f"line 1: {SECRET}"),
        _event("task-retried", exception=f"Retry({SECRET!r})", traceback=SECRET),
        _event("task-progress", text=SECRET),
    ]
    for event in events:
        assert SECRET not in str(safe_event(event)), event
    held = {"id": ID, "args": [SECRET], "kwargs": {"prompt": SECRET}}
    assert SECRET not in str(safe_request({**held, "request": held}))


def test_what_workers_say_becomes_columns() -> None:
    """What our workers write of a task is read back: model, priority, tokens, time in the queue, and the reason."""
    kwargs = shown({"job": ID, "dispatch": 1, "model": "tiny-bloom", "priority": "high"})
    received = safe_event(_event("task-received", kwargs=str(kwargs)) | {"uuid": ID, "timestamp": 1_752_346_000.0})
    assert received["model"] == "tiny-bloom"
    assert received["priority"] == "high"
    assert received["queued_s"] >= 0
    assert ID in received["kwargs"]
    again = shown({"job": ID, "dispatch": 2, "model": "tiny-bloom", "priority": "high"})
    assert "queued_s" not in safe_event(_event("task-received", kwargs=str(again)) | {"uuid": ID})
    done = safe_event(_event("task-succeeded", result=repr(Figures(12, 0.25)), runtime=1.5))
    assert (done["tokens"], done["queued_s"], done["runtime"]) == (12, 0.25, 1.5)
    for reason in ("GenerationFailed('job_dead: its worker died 3 times')", 'GenerationFailed("job_dead: it\'s dead")'):
        assert safe_event(_event("task-failed", exception=reason))["exception"] == "GenerationFailed(job_dead)"
    assert safe_event(_event("task-failed", exception="KeyError('x')"))["exception"] == "KeyError(…)"


@pytest.mark.parametrize(
    "word", [SECRET, "order-7", ID.replace("7", "A"), f"{ID}\n", f"{SECRET}-{ID}", 7, [ID], {SECRET: 1}]
)
def test_a_strangers_word_for_a_job_is_shown_nowhere(word: object) -> None:
    """Workers' events, their log and Flower agree on what may be shown as a job's id: a UUID, and nothing that could be
    a prompt of one word."""
    assert "job" in shown({"job": ID})
    assert _shown(ID) == facts({"job": ID})["job"] == ID
    assert shown({"job": word}) == {"others": 1}
    assert facts({"job": word}) == {}
    assert str(word) not in _shown(word)


def test_numbers_sort_as_numbers() -> None:
    """Flower sorts a page by text; tokens and seconds stand in their order there, and are numbers elsewhere."""
    state_ = _state()
    for number, (tokens, queued_s) in enumerate([(9, 10.5), (100, 9.25), (20, 0.001)]):
        state_.event(safe_event(_event("task-received", number, name="farm.generate")))
        state_.event(safe_event(_event("task-succeeded", number, result=repr(Figures(tokens, queued_s)))))
    for column, order in (("tokens", [0, 2, 1]), ("queued_s", [2, 1, 0])):
        page = state_.search_engine.search(state_.tasks, sort_by=column)
        assert page.task_ids == [f"job-{number}" for number in order]
    assert state_.tasks["job-1"].as_dict()["tokens"] == 100


def test_memory_is_bounded() -> None:
    """Of many tasks and workers the latest are kept, of what was counted too."""
    state_ = _state(max_tasks_in_memory=100, max_workers_in_memory=5)
    for number in range(1_000):
        state_.event(safe_event(_event("task-received", number, name="farm.generate", hostname=f"w{number % 50}")))
    assert len(state_.tasks) == 100
    assert len(state_.search_engine.documents) == 100
    assert "job-999" in state_.tasks
    assert len(state_.workers) <= 5
    assert len(state_.counter) <= 6


def test_state_comes_back(tmp_path: Path) -> None:
    """What was saved is there after a load, with the farm's columns; saving leaves one file, for its owner alone."""
    path = tmp_path / "flower.db"
    state_ = _state()
    state_.event(safe_event(_event("task-received", name="farm.generate", kwargs=str({"model": "tiny-bloom"}))))
    state_.event(safe_event(_event("task-succeeded", result=repr(Figures(7, 0.5)))))
    for _ in range(2):
        state.save(path, state_)
    found = state.load(path)
    task = found.tasks["job-0"]
    assert (task.state, task.model, task.tokens, task.queued_s) == ("SUCCESS", "tiny-bloom", 7, 0.5)
    assert found.counter["w1@host"]["task-succeeded"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["flower.db"]
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("cut", [0, 10, 40, -1])
def test_a_damaged_file_is_seen(tmp_path: Path, cut: int) -> None:
    """A file that was cut off anywhere, or in which a byte changed, is not loaded."""
    path = tmp_path / "flower.db"
    state.save(path, _state())
    whole = path.read_bytes()
    for broken in (whole[:cut], whole[:50] + b"\0" + whole[51:], b"x" * 100):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="damaged"):
            state.load(path)


def test_without_a_password_nothing_can_be_changed() -> None:
    """Pages offer no change that Flower's API would refuse for want of a password."""
    settings = load_settings({}).flower
    login = {"FLOWER_BASIC_AUTH": "a:b"}
    assert options.enforced(settings, {})["read_only"]
    assert not options.enforced(settings, login)["read_only"]
    assert options.enforced(load_settings({"FARM_FLOWER__READ_ONLY": "true"}).flower, login)["read_only"]


def _state(**limits: int) -> state.FarmState:
    return state.FarmState(**limits)
