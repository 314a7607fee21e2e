"""A prompt in an exception's text, or in a value on its way, never reaches the log."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from farm.logs import origin

pytestmark = pytest.mark.fast

REPOSITORY = Path(__file__).resolve().parents[2]
PROMPT = "Xyzzy"
FAILING = """
import logging, sys, threading
import structlog
from farm import logs
from farm.settings import load_settings
from workers.beat import Beat

def parse(prompt):
    return {}[prompt]

def answer(prompt):
    try:
        parse(prompt)
    except KeyError as error:
        raise ValueError(f"no answer to {prompt}") from error

logs.setup(load_settings(logs={"format": sys.argv[1]}).logs)
called = threading.Event()

def call():
    called.set()
    answer(sys.argv[2])

beat = Beat(call, lambda: 60.0)
beat.start()
called.wait(10)
beat.stop()
[thread.join(10) for thread in threading.enumerate() if thread.name == "beat"]
try:
    answer(sys.argv[2])
except ValueError as error:
    logs.log_defect(structlog.get_logger("ours"), "it_failed", error, batch="batch_1")
    structlog.get_logger("ours").exception("ours_failed")
    logging.getLogger("another.library").exception("theirs failed")
"""


def said(folder: Path, program: str, form: str) -> str:
    """All that a program says which has a prompt and logs in this form, without colours."""
    script = folder / "failing.py"
    script.write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script, form, PROMPT], capture_output=True, text=True, timeout=60, check=True
    )
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_text_of_an_exception_is_logged(tmp_path: Path, form: str) -> None:
    """Types, places and causes are, whoever logs it: the farm's own parts, its helper, another library."""
    log = said(tmp_path, FAILING, form)
    for event in ("beat_failed", "it_failed", "ours_failed", "theirs failed"):
        assert event in log
    for fact, times in (("ValueError", 4), ("KeyError", 4), ("in answer", 8), ("in parse", 4)):
        assert log.count(fact) >= times, f"{fact}: {log}"
    assert "batch_1" in log
    assert PROMPT not in log


def test_whoever_logs_a_defect_leaves_out_its_text() -> None:
    """No part that may have a job's data at hand logs an exception but by the helper."""
    own = [path for name in ("farm", "workers", "api") for path in (REPOSITORY / name).rglob("*.py")]
    found = [path.name for path in own if re.search(r"log\.exception\(|exc_info=", path.read_text(encoding="utf-8"))]
    assert found == []


def test_a_groups_members_are_named() -> None:
    """Of an exception group the log has the first three errors, wherever in it they are, with the place of each and no
    text, and how many more there are; so it has of a group that is the cause of another error."""

    def member(error: Exception) -> Exception:
        try:
            raise error
        except Exception as raised:
            return raised

    inner = ExceptionGroup(PROMPT, [member(KeyError(PROMPT)), member(OSError(PROMPT))])
    group = member(ExceptionGroup(PROMPT, [inner, *(member(ValueError(PROMPT)) for _ in range(5))]))
    said = origin(group)
    head, *members = said.split("\nwith\n")
    assert head.endswith("ExceptionGroup")
    assert [part.rpartition("\n")[2] for part in members] == ["KeyError", "OSError", "ValueError", "4 more"]
    assert all("in member" in part for part in members[:3])
    assert PROMPT not in said
    wrapped = RuntimeError()
    wrapped.__cause__ = group
    assert origin(wrapped).endswith(said)


TASK = """
import sys, threading
from celery import Celery
from farm import logs
from farm.settings import load_settings
from workers import redaction

logs.setup(load_settings(logs={"format": sys.argv[1]}).logs)
redaction.withhold_bodies()
app = Celery("it", broker="memory://")

@app.task(name="answer")
def answer(prompt):
    raise ValueError(f"no answer to {prompt}")

answer.apply([sys.argv[2]])
thread = threading.Thread(target=answer.run, args=[sys.argv[2]], name="lost")
thread.start()
thread.join()
"""


@pytest.mark.parametrize("form", ["json", "text"])
def test_nor_is_one_that_ends_a_task_or_a_thread(tmp_path: Path, form: str) -> None:
    """Celery writes an error's text into its own line about a task, and Python into its own about a thread."""
    log = said(tmp_path, TASK, form)
    assert "raised unexpected: ValueError" in log
    assert "thread_ended" in log
    assert "lost" in log
    assert PROMPT not in log
