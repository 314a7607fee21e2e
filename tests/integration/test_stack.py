"""``farm up``: a whole farm of real processes, and what happens to it when parts of it die."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil
import pytest

from farm.ledger.attempts import Attempts
from farm.ledger.jobs import Jobs
from farm.local.stack import Stack
from farm.settings import Settings
from tests.commands import FARM, Up, environ, farm, running, wait_until_gone
from tests.conftest import wait_until

SLOW = {"ENGINE__SYNTHETIC_STEP_S": 0.02}


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """A farm with one worker, without Flower."""
    with running(tmp_path / "state", "--no-flower", "--no-api", **SLOW) as ready:
        yield ready


def _submit(up: Up, tokens: int = 8) -> str:
    return farm("submit", "A goat", "--no-wait", "--max-tokens", tokens, **up.settings).out.strip()


def _url(settings: Settings) -> str:
    assert settings.redis.url is not None
    return settings.redis.url.get_secret_value()


def _state(up: Up, job_id: str) -> str:
    return str(farm("status", job_id, "--json", **up.settings).json["state"])


def _result(up: Up, tokens: int) -> dict[str, Any]:
    """Ask for a completion, and wait."""
    said = farm("submit", "A goat", "--max-tokens", tokens, "--json", **up.settings)
    assert said.code == 0, said.err
    body: dict[str, Any] = said.json
    return body


def _end(up: Up, job_id: str) -> dict[str, Any]:
    """A job's end, waited for as a user would: by asking for it again."""
    wait_until(lambda: _state(up, job_id) not in ("queued", "running"), why="the job's end", timeout_s=60)
    body: dict[str, Any] = farm("status", job_id, "--json", **up.settings).json
    return body


def test_up_serves_and_goes_without_a_trace(up: Up) -> None:
    """Others find the farm by its folder; Ctrl-C ends every process and takes the note away, and the data stays."""
    note = up.state_dir / "farm.json"
    assert note.stat().st_mode & 0o777 == 0o600
    assert json.loads(note.read_text())["pid"] == up.process.pid
    assert up.ready["workers"] == ["local-1"]
    assert up.ready["flower_url"] is None
    assert _result(up, 4)["state"] == "succeeded"
    family = up.family()
    assert len(family) >= 4  # server, worker, its engine, system worker
    assert up.interrupt() == 0
    wait_until_gone(family)
    assert not note.exists()
    assert (up.state_dir / "redis" / "appendonlydir").is_dir()
    assert farm("status", **up.settings).code == 3


def test_no_password_in_any_argument_list(up: Up) -> None:
    """Whoever lists processes learns nothing: addresses go to children by their environment."""
    url = json.loads((up.state_dir / "farm.json").read_text())["redis_url"]
    password = url.removeprefix("redis://:").partition("@")[0]
    assert len(password) >= 20
    for process in up.family():
        assert password not in " ".join(process.cmdline())


def test_a_running_job_survives_a_stop_and_a_start(up: Up) -> None:
    """Ctrl-C hands a running job back with its tokens; the next farm up in the folder goes on with it."""
    job_id = _submit(up, tokens=400)
    wait_until(lambda: farm("status", job_id, "--json", **up.settings).json["text"], why="the first token")
    assert up.interrupt() == 0
    with running(up.state_dir, "--no-flower", "--no-api") as later:
        job = _end(later, job_id)
    assert job["state"] == "succeeded"
    assert job["usage"]["completion_tokens"] == 400
    assert job["usage"]["resumed_tokens"] > 0


def test_a_restarted_farm_has_the_address_it_had(tmp_path: Path) -> None:
    """Who waits for a farm that is stopped and started again finds it: port, password and model stay."""
    with running(tmp_path, "--no-flower", "--no-api", "--workers", 1) as first:
        before = json.loads((tmp_path / "farm.json").read_text())["redis_url"]
        assert first.ready["workers"]
    with running(tmp_path, "--no-flower", "--no-api", "--workers", 1) as second:
        assert json.loads((tmp_path / "farm.json").read_text())["redis_url"] == before
        assert stat.S_IMODE((tmp_path / "server.json").stat().st_mode) == 0o600
        assert farm("submit", "A goat", "--max-tokens", 2, **second.settings).code == 0


def test_the_second_up_names_the_first(up: Up) -> None:
    """One folder, one farm: the second says where the first is, and disturbs nothing."""
    said = farm("up", "--state-dir", up.state_dir)
    assert said.code == 1
    assert f"pid {up.process.pid}" in said.err
    assert str(up.ready["redis"]) in said.err
    assert said.err.count("\n") == 1
    assert _result(up, 2)["state"] == "succeeded"


def test_a_killed_worker_is_replaced(up: Up) -> None:
    """kill -9 of a worker: it is started again, its job goes on where it was, and both are said."""
    job_id = _submit(up, tokens=300)
    wait_until(lambda: farm("status", job_id, "--json", **up.settings).json["text"], why="the first token")
    os.kill(up.ready["pids"]["local-1"], signal.SIGKILL)
    assert up.next() == {"event": "ended", "part": "local-1", "text": "was ended by SIGKILL; starting it again"}
    assert up.next()["event"] == "restarted"
    job = _end(up, job_id)
    assert job["state"] == "succeeded"
    assert [past["reason"] for past in job["history"]] == ["worker_restarted", "finish"]


def test_a_killed_server_comes_back_with_every_job(up: Up) -> None:
    """kill -9 of the server: it is back on its port with its password, and no accepted job is lost."""
    ids = [_submit(up, tokens=150) for _ in range(5)]
    os.kill(up.ready["pids"]["redis"], signal.SIGKILL)
    assert [up.next()["event"] for _ in range(2)] == ["ended", "restarted"]
    assert [_end(up, job_id)["state"] for job_id in ids] == ["succeeded"] * 5
    assert _result(up, 2)["state"] == "succeeded"


def test_nothing_outlives_a_killed_up(tmp_path: Path) -> None:
    """kill -9 of farm up itself ends its parts too; the next one recovers from what it left, jobs included."""
    with running(tmp_path, "--no-flower", "--no-api", **SLOW) as first:
        family = first.family()
        job_id = _submit(first, tokens=100)
        first.process.kill()
        first.process.wait()
        wait_until_gone(family)
        assert (tmp_path / "farm.json").exists()
        assert farm("status", **first.settings).code == 3
    with running(tmp_path, "--no-flower", "--no-api") as second:
        assert _end(second, job_id)["state"] == "succeeded"


def test_a_second_interrupt_does_not_wait(up: Up) -> None:
    """A worker that hangs can't hold up somebody in a hurry: the second Ctrl-C ends everything."""
    family = up.family()
    os.kill(up.ready["pids"]["local-1"], signal.SIGSTOP)
    up.process.send_signal(signal.SIGINT)
    wait_until(lambda: not (up.state_dir / "farm.json").exists(), why="the stop to begin")
    assert up.interrupt() == 0
    wait_until_gone(family)


def test_a_refused_model_ends_up(tmp_path: Path) -> None:
    """A model that can't be served is no reason to try again: its reason is shown, and nothing is left running."""
    before = set(psutil.Process().children(recursive=True))
    said = farm("up", "--no-flower", "--no-api", "--state-dir", tmp_path, MODEL__ID=tmp_path / "nothing")
    assert said.code == 1
    assert "nothing does not exist" in said.err
    assert said.err.count("\n") == 1
    assert set(psutil.Process().children(recursive=True)) == before


def test_up_uses_the_server_it_is_given(tmp_path: Path, settings: Settings) -> None:
    """FARM_REDIS__URL: no server is started, and the workers' names can't collide with another machine's."""
    url = _url(settings)
    with running(tmp_path, "--no-flower", "--no-api", REDIS__URL=url) as up:
        assert "redis" not in up.ready["pids"]
        assert not up.ready["workers"][0].startswith("local")
        assert farm("submit", "A goat", "--max-tokens", 2, REDIS__URL=url).code == 0
    assert farm("up", "--state-dir", tmp_path, REDIS__URL="redis://127.0.0.1:1/0").code == 3
    alone = farm("up", "--state-dir", tmp_path, REDIS__WAIT_REPLICAS=1)
    assert alone.code == 2
    assert "has no replicas" in alone.err


def _page(url: str) -> str:
    """A page's text; "" while there is none."""
    try:
        with urlopen(url) as answer:  # noqa: S310
            text: str = answer.read().decode()
            return text
    except HTTPError:
        return ""


def test_a_worker_whose_engine_fails_is_not_ready(settings: Settings, jobs: Jobs) -> None:
    """``farm up`` waits for it, and says what is wrong with it when it has waited long enough."""
    stack = Stack(settings, workers=2, flower=False)
    first, second = stack.worker_names
    for name in (first, second):
        Attempts(jobs, f"{name}.0").register(name, "tiny-bloom", 4, "model", None)
    Attempts(jobs, f"{second}.0").progress([], 0, trouble="engine failing: it is broken")
    assert stack._unregistered() == [f"{second} (engine failing: it is broken)"]


def test_flower_shows_jobs_under_their_own_ids(tmp_path: Path) -> None:
    """A job's page in Flower is found by the job's id, and no page shows a word of its prompt."""
    with running(tmp_path) as up:
        body = farm("submit", "Xyzzy said the goat", "--max-tokens", 2, "--json", **up.settings).json
        url = f"{up.ready['flower_url']}/task/{body['id']}"
        wait_until(lambda: "SUCCESS" in _page(url), why="Flower to hear of it")
        page = _page(url)
    assert body["id"] in page
    assert "Xyzzy" not in page


def test_the_whole_demo(tmp_path: Path) -> None:
    """From nothing to answers: the demo starts a farm, runs the bundled prompts and leaves nothing running."""
    said = farm("demo", "--json", ENGINE__KIND="synthetic", LOCAL__STATE_DIR=tmp_path / "none")
    assert said.code == 0, said.err
    assert said.json["failed"] == 0
    assert said.json["succeeded"] == len(said.json["completions"]) > 10
    assert said.json["completion_tokens"] > 0
    assert {"custom_id", "prompt", "text"} == said.json["completions"][0].keys()


def test_a_worker_by_itself(settings: Settings, tmp_path: Path) -> None:
    """``farm worker`` becomes the worker: SIGTERM ends it with 0, its name is the one given."""
    url = _url(settings)
    command = [*FARM, "worker", "--role", "system", "--name", "solo"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environ(REDIS__URL=url), stdout=log, stderr=log)
    try:
        wait_until(
            lambda: "solo" in [w["name"] for w in farm("status", "--json", REDIS__URL=url).json["workers"]],
            why="the worker to register",
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
