"""``farm submit``, ``status`` and ``cancel`` as processes, against a real server and a worker by rule."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from farm.ledger.jobs import Jobs
from farm.settings import Settings, load_settings
from tests.commands import FARM, Said, environ, farm
from tests.conftest import wait_until
from tests.farmhand import QUICK_KEEPER, QUICK_LEASE, Farmhand, text_of

GONE = "01890a5d-ac96-774b-bcce-b302099a8057"


@pytest.fixture
def quick(settings: Settings, client: redis.Redis) -> Settings:
    """Settings of a worker that is quick to notice things, on the emptied server."""
    del client
    return load_settings(redis={"url": settings.redis.url}, lease=QUICK_LEASE, keeper=QUICK_KEEPER)


@pytest.fixture
def hand(quick: Settings) -> Iterator[Farmhand]:
    """A worker that answers at once."""
    with Farmhand(quick) as working:
        yield working


def _farm(settings: Settings, *args: object, stdin: str = "", **more: object) -> Said:
    assert settings.redis.url is not None
    return farm(*args, stdin=stdin, REDIS__URL=settings.redis.url.get_secret_value(), **more)


@pytest.mark.usefixtures("hand")
def test_submit_prints_the_completion_alone(quick: Settings) -> None:
    """What goes into a pipe is the text and nothing else."""
    said = _farm(quick, "submit", "A goat", "--max-tokens", 3)
    assert (said.code, said.out, said.err) == (0, text_of("A goat", 3) + "\n", "")


@pytest.mark.usefixtures("hand")
def test_submit_reads_standard_input(quick: Settings) -> None:
    """A prompt from a pipe loses its last newline, which echo put there, and no other character."""
    said = _farm(quick, "submit", "-", "--max-tokens", 2, "--json", stdin="  A\ngoat\n\n")
    job = Jobs(quick)
    assert said.json["text"] == text_of("  A\ngoat\n", 2)
    assert job.view(said.json["id"]).state.value == "succeeded"
    job.client.close()


@pytest.mark.usefixtures("hand")
def test_submit_takes_a_request_s_options(quick: Settings) -> None:
    """Options reach the job: sampling, priority, tenant, deadline, stop strings and the idempotency key."""
    options = ["--max-tokens", 4, "--temperature", 0.5, "--top-p", 0.9, "--top-k", 5, "--seed", 7, "--stop", "x"]
    options += ["--stop", "y", "--priority", "high", "--tenant", "acme", "--deadline", 60, "--idempotency-key", "k"]
    first = _farm(quick, "submit", "A goat", *options, "--json")
    again = _farm(quick, "submit", "A goat", *options, "--json")
    assert first.code == again.code == 0
    assert first.json["id"] == again.json["id"]
    assert first.json["priority"] == "high"
    assert first.json["tenant"] == "acme"
    other = _farm(quick, "submit", "Another goat", *options)
    assert other.code == 1
    assert "another request" in other.err


@pytest.mark.usefixtures("hand")
def test_submit_streams(quick: Settings) -> None:
    """--stream prints the same text; with --json it is one line per piece and the whole job last."""
    assert _farm(quick, "submit", "A goat", "--stream", "--max-tokens", 5).out == text_of("A goat", 5) + "\n"
    *pieces, job = _farm(quick, "submit", "A goat", "--stream", "--max-tokens", 5, "--json").lines
    assert "".join(piece["text"] for piece in pieces) == job["text"] == text_of("A goat", 5)
    assert {piece["id"] for piece in pieces} == {job["id"]}
    assert job["state"] == "succeeded"


def test_a_job_from_submission_to_cancellation(quick: Settings, client: redis.Redis) -> None:
    """Without a worker: --no-wait gives an id, status its place in line, cancel ends it, by a pipe too, once."""
    del client
    _farm(quick, "submit", "A mouse", "--no-wait")
    said = _farm(quick, "submit", "A goat", "--no-wait")
    job_id = said.out.strip()
    assert said.code == 0
    job = _farm(quick, "status", job_id, "--json").json
    assert (job["id"], job["state"], job["position"]) == (job_id, "queued", 2)
    shown = _farm(quick, "status", job_id).out
    assert "queued" in shown
    assert "2 in line" in shown
    assert _farm(quick, "cancel", job_id).out == f"{job_id} cancelled\n"
    again = _farm(quick, "cancel", "-", GONE, "--json", stdin=job_id + "\n")
    assert again.code == 1
    assert again.lines == [{"id": job_id, "state": "cancelled"}, {"id": GONE, "state": None}]


def test_a_wait_with_an_end(quick: Settings, client: redis.Redis) -> None:
    """--timeout gives up waiting, not the job; that no worker is there is said."""
    del client
    said = _farm(quick, "submit", "A goat", "--timeout", 0.2, "--json")
    assert said.code == 1
    assert said.json["state"] == "queued"
    assert "no worker serves tiny-bloom" in said.err
    assert "no answer within 0.2 s; the job goes on:" in said.err
    assert f"  farm status {said.json['id']}   shows it" in said.err.splitlines()


def test_a_private_webhook_is_warned_of(quick: Settings, client: redis.Redis) -> None:
    """A webhook that only a system worker's settings can allow is accepted, and said to be such; another is not."""
    del client
    for url in ("https://10.1.2.3/hook", "http://127.0.0.1:9/hook", "http://example.com/hook"):
        said = _farm(quick, "submit", "A goat", "--no-wait", "--webhook", url)
        assert (said.code, said.err.startswith("--webhook: ")) == (0, True)
        assert "farm status JOB says how the call went" in said.err
    assert _farm(quick, "submit", "A goat", "--no-wait", "--webhook", "https://example.com/hook").err == ""
    there = ("submit", "A goat", "--no-wait", "--webhook", "http://10.1.2.3/hook")
    assert _farm(quick, *there, WEBHOOKS__ALLOW="10.0.0.0/8").err == ""
    assert _farm(quick, "submit", "A goat", "--webhook", "ftp://example.com").code == 2


def test_whoever_stops_waiting_is_told_how_to_go_on(quick: Settings) -> None:
    """Ctrl-C ends the wait, not the job, and says where to find it."""
    assert quick.redis.url is not None
    with Farmhand(quick, tokens_per_beat=0) as hand:
        process = subprocess.Popen(
            [*FARM, "submit", "A goat"],
            env=environ(REDIS__URL=quick.redis.url.get_secret_value()),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: hand.claims, why="the job to run")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (130, "")
        assert "stopped waiting; the job goes on:" in err
        assert f"  farm status {hand.claims[0]}   shows it" in err.splitlines()
        assert _farm(quick, "status", hand.claims[0], "--json").json["state"] == "running"


def test_a_failed_job_is_a_failed_command(quick: Settings) -> None:
    """The reason is one line on stderr; the JSON has the job with it."""
    with Farmhand(quick, fail_prompts=frozenset({"bad"})):
        said = _farm(quick, "submit", "bad", "--json")
    assert said.code == 1
    assert said.json["error"]["code"] == "model_error"
    assert said.err.count("\n") == 1
    assert "the model said no" in said.err


def test_status_shows_the_farm(quick: Settings, client: redis.Redis) -> None:
    """Jobs by priority, workers with their slots, and totals: for people and for programs."""
    del client
    for priority in ("high", "low", "low"):
        _farm(quick, "submit", "A goat", "--no-wait", "--priority", priority)
    with Farmhand(quick, tokens_per_beat=0, capacity=2) as hand:
        # Two run, and messages for others wait; those count as queued in what people see.
        wait_until(lambda: hand.most_seen >= 2, why="jobs to run")
        seen = _farm(quick, "status", "--json").json
        shown = _farm(quick, "status").out
    [model] = seen["models"]
    assert model["model"] == "tiny-bloom"
    assert sum(model["queued"].values()) + model["dispatched"] + model["running"] == 3
    assert [(worker["name"], worker["slots"], worker["is_alive"]) for worker in seen["workers"]] == [("hand", 2, True)]
    assert seen["totals"] == {"submitted": 3}
    assert "hand" in shown
    assert "submitted 3" in shown


def test_status_tells_a_job_s_history(quick: Settings) -> None:
    """A job that moved shows every attempt: who had it, and why it left."""
    with Farmhand(quick, name="first", tokens_per_beat=1, die_at=3) as first:
        job_id = _farm(quick, "submit", "A goat", "--no-wait", "--max-tokens", 50).out.strip()
        wait_until(lambda: not first.is_alive, why="the worker to die")
    with Farmhand(quick, name="second"):
        wait_until(lambda: _farm(quick, "status", job_id, "--json").json["state"] == "succeeded", why="the job's end")
    shown = _farm(quick, "status", job_id).out
    assert "first-" in shown
    assert "second-" in shown
    assert "resumed" in shown
    assert "attempt 2" in shown


def test_an_unknown_job_fails(quick: Settings, client: redis.Redis) -> None:
    """An id that is not there is 1, with a line that says what to check."""
    del client
    said = _farm(quick, "status", "0190aaaa")
    assert said.code == 1
    assert "unknown" in said.err


def test_a_bad_request_is_wrong_usage(quick: Settings, client: redis.Redis) -> None:
    """A value out of range is 2, with the limit."""
    del client
    said = _farm(quick, "submit", "A goat", "--top-p", 3)
    assert said.code == 2
    assert said.err.startswith("farm: top_p: 3")
    assert "out of range; give at most 1" in said.err
    assert said.err.count("\n") == 1
    assert _farm(quick, "submit", "A goat", "--stream", "--no-wait").code == 2


@pytest.mark.parametrize(
    "command", [["status"], ["submit", "x"], ["cancel", GONE], ["keys", "list"], ["usage"], ["worker"], ["flower"]]
)
def test_no_server_is_3(command: list[str]) -> None:
    """Whatever is asked of a server that is not there ends with 3 and one line."""
    said = farm(*command, REDIS__URL="redis://127.0.0.1:1/0")
    assert said.code == 3
    assert said.err.startswith("farm: Redis at 127.0.0.1:1 does not answer")
    assert said.err.count("\n") == 1


def test_no_farm_here_is_3(tmp_path: object) -> None:
    """Without a server's name and without a local farm the line says how to start one."""
    said = farm("status", LOCAL__STATE_DIR=tmp_path)
    assert said.code == 3
    assert "start one with: farm up" in said.err


def test_a_local_farm_without_its_server_is_3(tmp_path: Path) -> None:
    """Who set nothing is told of the farm's folder, and of no setting."""
    note = {"redis_url": "redis://:hush@127.0.0.1:1/0", "pid": os.getpid()}
    (tmp_path / "farm.json").write_text(json.dumps(note))
    said = farm("status", LOCAL__STATE_DIR=tmp_path)
    assert said.code == 3
    assert str(tmp_path) in said.err
    assert "FARM_REDIS__URL" not in said.err
    assert "hush" not in said.err


def test_flower_is_not_opened_to_everyone(quick: Settings) -> None:
    """Flower listens beyond this machine only with a password."""
    said = _farm(quick, "flower", "--host", "192.0.2.1")
    assert said.code == 2
    assert "FLOWER_BASIC_AUTH" in said.err
