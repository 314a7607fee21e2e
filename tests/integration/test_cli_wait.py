"""``farm wait`` as a process, against a real server and a worker by rule."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest
import redis

from farm import Farm
from farm.settings import Settings
from tests.commands import FARM, Said, environ, farm
from tests.conftest import wait_until
from tests.farmhand import Farmhand, quick, text_of

GONE = "01890a5d-ac96-774b-bcce-b302099a8057"


@pytest.fixture
def asking(settings: Settings, client: redis.Redis) -> Settings:
    """Settings of the emptied server."""
    del client
    return quick(settings)


def _wait(settings: Settings, *args: object, stdin: str = "") -> Said:
    assert settings.redis.url is not None
    return farm("wait", *args, stdin=stdin, REDIS__URL=settings.redis.url.get_secret_value())


def _submit(settings: Settings, *prompts: str, tokens: int = 3) -> list[str]:
    with Farm(settings) as client:
        return [job.id for job in client.submit_many(prompts, max_tokens=tokens)]


def test_the_text_of_one_job_comes_alone(asking: Settings) -> None:
    """As from farm submit: the text on stdout and nothing beside it; so it is again once the job has ended."""
    [job] = _submit(asking, "A goat")
    with Farmhand(asking):
        said = _wait(asking, job)
    assert (said.code, said.out) == (0, text_of("A goat", 3) + "\n")
    assert _wait(asking, job, "--timeout", 0) == Said(0, text_of("A goat", 3) + "\n", "")


def test_several_are_told_apart(asking: Settings) -> None:
    """Each text stands below a line with its job's id, each job once, also when its id is given twice."""
    first, second = _submit(asking, "A goat", "A hen")
    with Farmhand(asking):
        said = _wait(asking, first, "-", second, stdin=f"{second}\n  {first}\n")
    assert said.code == 0
    assert {part.strip() for part in said.out.split("==> ") if part} == {
        f"{first} <==\n{text_of('A goat', 3)}",
        f"{second} <==\n{text_of('A hen', 3)}",
    }


def test_programs_get_a_line_for_each_job(asking: Settings) -> None:
    """One that failed and one that is unknown are among them; the reasons are on stderr, and the command fails."""
    good, bad = _submit(asking, "A goat", "bad")
    with Farmhand(asking, fail_prompts=frozenset({"bad"})):
        said = _wait(asking, good, bad, GONE, "--json")
    assert said.code == 1
    assert {line["id"]: line["state"] for line in said.lines} == {good: "succeeded", bad: "failed", GONE: None}
    assert next(line["text"] for line in said.lines if line["id"] == good) == text_of("A goat", 3)
    complaints = [line for line in said.err.splitlines() if line.startswith("farm: ")]
    assert len(complaints) == 2
    assert any("the model said no" in line for line in complaints)
    assert any(GONE in line for line in complaints)


def test_a_wait_that_is_over_leaves_the_jobs_running(asking: Settings) -> None:
    """After --timeout what has ended is printed, the rest is named with how to go on, and the command fails."""
    [waiting] = _submit(asking, "A hen")
    said = _wait(asking, waiting, "--timeout", 0.2)
    assert (said.code, said.out) == (1, "")
    assert "no worker serves tiny-bloom" in said.err
    assert "no answer within 0.2 s; the job goes on:" in said.err
    assert f"  farm wait {waiting}     waits for it" in said.err.splitlines()
    with Farmhand(asking):
        assert _wait(asking, waiting).code == 0
    [later] = _submit(asking, "A goat")
    said = _wait(asking, waiting, later, "--timeout", 0.2)
    assert (said.code, said.out) == (1, f"==> {waiting} <==\n{text_of('A hen', 3)}\n")
    told = _wait(asking, waiting, later, "--timeout", 0.2, "--json")
    assert [(line["id"], line["state"]) for line in told.lines] == [(waiting, "succeeded"), (later, "queued")]


def test_whoever_stops_waiting_ends_no_job(asking: Settings) -> None:
    """Ctrl-C ends the wait with 130, and says how many go on."""
    jobs = _submit(asking, "A goat", "A hen")
    assert asking.redis.url is not None
    with Farmhand(asking, tokens_per_beat=0) as hand:
        process = subprocess.Popen(
            [*FARM, "wait", *jobs, "--json"],
            env=environ(REDIS__URL=asking.redis.url.get_secret_value()),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with Farm(asking) as client:
            wait_until(lambda: hand.most_seen >= 2, why="the jobs to run")
            wait_until(
                lambda: any(entry["cmd"].startswith("xread") for entry in client.ledger.client.client_list()),
                why="the command to wait",
            )
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert "stopped waiting; 2 jobs go on" in err


def test_a_terminal_shows_how_far_a_job_is(asking: Settings, tmp_path: Path) -> None:
    """A bar of the job's tokens moves on the terminal, while stdout, which leads elsewhere, gets the text alone."""
    [job] = _submit(asking, "A goat", tokens=50)
    assert asking.redis.url is not None
    screen, terminal = pty.openpty()
    seen = ""
    with (tmp_path / "out").open("w") as out, Farmhand(asking, tokens_per_beat=0) as hand:
        process = subprocess.Popen(
            [*FARM, "wait", job],
            env={**environ(REDIS__URL=asking.redis.url.get_secret_value()), "TERM": "xterm", "COLUMNS": "100"},
            stdout=out,
            stderr=terminal,
        )
        os.close(terminal)
        while "0/50" not in seen or "running" not in seen:
            seen += os.read(screen, 4096).decode()
        hand.tokens_per_beat = 1_000
        assert process.wait(30) == 0
    os.close(screen)
    assert (tmp_path / "out").read_text() == text_of("A goat", 50) + "\n"


def test_an_empty_list_is_wrong_usage(asking: Settings) -> None:
    """Whoever gives no id is told where ids come from."""
    said = _wait(asking, "-", stdin="\n")
    assert said.code == 2
    assert "standard input holds no id" in said.err


def test_more_jobs_than_one_call_asks_for(asking: Settings) -> None:
    """A thousand and more jobs that have ended are printed by one command, each once."""
    with Farm(asking) as client:
        jobs = [job.id for job in client.submit_many(["A goat"] * 1_200)]
        client.ledger.cancel(jobs)
    said = _wait(asking, "-", "--json", stdin=" ".join(jobs))
    assert said.code == 1
    assert [json.loads(line)["id"] for line in said.out.splitlines()] == jobs
