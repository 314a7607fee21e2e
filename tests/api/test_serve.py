"""The API as a process: ``farm api``, one process or several, stopped, killed and started again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

from farm.ledger.jobs import Jobs
from farm.listening import listen
from farm.settings import Settings
from tests.api.conftest import WEB, follow, json_of, submit
from tests.commands import environ, farm, is_alive, running, wait_until_gone
from tests.conftest import wait_until
from tests.farmhand import Farmhand, text_of


@dataclass
class ApiProcess:
    """``python -m api`` on a port of its own."""

    process: subprocess.Popen[bytes]
    url: str
    log_path: Path

    def answers(self) -> bool:
        with contextlib.suppress(httpx2.TransportError):
            return WEB.get(f"{self.url}/livez").status_code == 200
        return False

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(30)

    @property
    def log(self) -> str:
        return self.log_path.read_text()


def free_port() -> int:
    with listen("127.0.0.1", 0, "") as probe:
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def api_process(settings: Settings, folder: Path, **more: object) -> Iterator[ApiProcess]:
    """Start the API and wait until it answers; killed at the end with all that it started."""
    assert settings.redis.url is not None
    port, log_path = more.pop("API__PORT", None) or free_port(), folder / "api.log"
    own = {"REDIS__URL": settings.redis.url.get_secret_value(), "API__PORT": port, "API__KEYS": "local"}
    env = environ(**{**own, **more})
    with log_path.open("ab") as log:
        command = [sys.executable, "-W", "error", "-m", "api"]
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    api = ApiProcess(process, f"http://127.0.0.1:{port}", log_path)
    try:
        wait_until(lambda: api.answers() or process.poll() is not None, why="the API to answer")
        assert process.poll() is None, api.log
        yield api
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_stream_goes_on_across_a_crash_of_the_api(
    api_settings: Settings, jobs: Jobs, hand: Farmhand, tmp_path: Path
) -> None:
    """kill -9 cuts the stream; from its last id another process gives the rest, nothing twice and nothing missing."""
    hand.tokens_per_beat = 1
    with hand, api_process(api_settings, tmp_path) as api:
        job = submit(jobs, max_tokens=400)
        heard = follow(api.url, job, stop_at=5)
        port = int(api.url.rpartition(":")[2])
        api.stop(signal.SIGKILL)
        hand.tokens_per_beat = 1_000_000
        with api_process(api_settings, tmp_path, API__PORT=port) as again:
            rest = follow(again.url, job, after=heard.events[-1].id)
    assert heard.text() + rest.text() == text_of("A goat", 400)
    assert heard.events[-1].name == "tokens"


def test_a_stopped_process_ends_well(api_settings: Settings, jobs: Jobs, tmp_path: Path) -> None:
    """SIGTERM: open streams are told to come back, what was begun is answered, the exit code is 0, the log is clean."""
    with api_process(api_settings, tmp_path, LOGS__FORMAT="json") as api, ThreadPoolExecutor() as threads:
        job = submit(jobs, "Xyzzy said the goat")
        stream = threads.submit(follow, api.url, job)
        poll = threads.submit(WEB.get, f"{api.url}/v1/jobs/{job}", params={"wait": 30})
        connections = lambda: len(psutil.Process(api.process.pid).net_connections())  # noqa: E731
        wait_until(lambda: connections() >= 3, why="both to be connected")
        assert WEB.post(f"{api.url}/v1/jobs", json={"prompt": "Xyzzy"}).status_code == 202
        assert api.stop() == 0
        assert json_of(stream.result().events[-1]) == {"last_event_id": "0", "reason": "this server stops"}
        assert poll.result().json()["state"] == "queued"
        assert "Xyzzy" not in api.log
        assert [line for line in api.log.splitlines() if '"level": "info"' not in line] == []


def test_no_prompt_or_key_in_a_log_at_any_level(api_settings: Settings, jobs: Jobs, tmp_path: Path) -> None:
    """Even at DEBUG a log tells who asked for what path, and nothing that was said."""
    with (
        Farmhand(api_settings),
        api_process(api_settings, tmp_path, LOGS__LEVEL="DEBUG", LOGS__FORMAT="json") as api,
    ):
        secret = {"Authorization": "Bearer bf_" + "secret" * 8}
        job = WEB.post(f"{api.url}/v1/jobs", json={"prompt": "Xyzzy goat", "max_tokens": 2}).json()["id"]
        assert follow(api.url, job).text() == text_of("Xyzzy goat", 2)
        assert WEB.post(f"{api.url}/v1/jobs", json={"prompt": "Xyzzy", "stop": 5}).status_code == 400
        assert WEB.get(f"{api.url}/v1/jobs", headers=secret).status_code == 401
        api.stop()
        requests = [line for line in map(json.loads, api.log.splitlines()) if line["event"] == "request"]
        assert {"POST", "GET"} <= {line["method"] for line in requests}
        assert not any(word in api.log for word in ("Xyzzy", "secret", text_of("Xyzzy goat", 2)))


def test_several_processes_share_a_port(api_settings: Settings, jobs: Jobs, tmp_path: Path) -> None:
    """One that is killed is replaced, connections are answered meanwhile, and none outlives the first."""
    with api_process(api_settings, tmp_path, API__PROCESSES=2) as api, Farmhand(api_settings):
        parent = psutil.Process(api.process.pid)

        def servers() -> list[psutil.Process]:
            return [child for child in parent.children() if is_alive(child) and "spawn_main" in str(child.cmdline())]

        wait_until(lambda: len(servers()) == 2, why="two processes")
        family = servers()
        family[0].kill()
        wait_until(lambda: len(servers()) == 2 and family[0] not in servers(), why="another one")
        answer = WEB.post(f"{api.url}/v1/jobs", json={"prompt": "x", "max_tokens": 2}, headers={"Prefer": "wait=20"})
        assert answer.status_code == 200
        family = servers()
        parent.kill()
        wait_until_gone(family)


def test_several_processes_stop_together(api_settings: Settings, jobs: Jobs, tmp_path: Path) -> None:
    """SIGTERM to the first ends all, and each sends its clients on."""
    with api_process(api_settings, tmp_path, API__PROCESSES=2) as api, ThreadPoolExecutor() as threads:
        job = submit(jobs)
        wait_until(api.answers, why="the API to answer")
        streams = [threads.submit(follow, api.url, job) for _ in range(4)]
        family = psutil.Process(api.process.pid).children(recursive=True)
        wait_until(lambda: sum(_open(child) for child in family) >= 4, why="all to be connected")
        assert api.stop() == 0
        assert [stream.result().events[-1].name for stream in streams] == ["resume"] * 4
        wait_until_gone(family)


def _open(process: psutil.Process) -> int:
    return sum(connection.status == psutil.CONN_ESTABLISHED for connection in process.net_connections("tcp"))


def test_what_can_not_start_says_so_in_a_line(settings: Settings, tmp_path: Path) -> None:
    """A taken port, an open door, no farm: one line that names the remedy, and no traceback."""
    assert settings.redis.url is not None
    url = settings.redis.url.get_secret_value()
    with listen("127.0.0.1", 0, "") as taken:
        taken.listen()
        port = taken.getsockname()[1]
        for args in (("-m", "api"), ("-m", "farm.cli.main", "api")):
            done = subprocess.run(
                [sys.executable, *args],
                env=environ(REDIS__URL=url, API__PORT=port),
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            assert done.returncode in (1, 2)
            assert f"127.0.0.1:{port} can't be used" in done.stderr
            assert "FARM_API__PORT" in done.stderr
            assert done.stderr.count("\n") == 1
    said = farm("api", "--host", "0.0.0.0", REDIS__URL=url, API__KEYS="local")  # noqa: S104
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "farm keys create" in said.err
    assert farm("api", LOCAL__STATE_DIR=tmp_path).code == 3


def test_up_starts_it(tmp_path: Path) -> None:
    """farm up answers HTTP without a key, says where, and starts the API again when it dies."""
    with running(tmp_path, "--no-flower") as up:
        url = up.ready["api_url"]
        assert json.loads((tmp_path / "farm.json").read_text())["api_url"] == url
        assert farm("status", "--json", **up.settings).json["api_url"] == url
        assert f"API {url}" in farm("status", **up.settings).out
        asked = {"prompt": "A goat", "max_tokens": 2}
        assert WEB.post(f"{url}/v1/jobs", json=asked, headers={"Prefer": "wait=30"}).status_code == 200
        os.kill(up.ready["pids"]["api"], signal.SIGKILL)
        assert [up.next()["event"] for _ in range(2)] == ["ended", "restarted"]
        note = lambda: json.loads((tmp_path / "farm.json").read_text())["api_url"]  # noqa: E731
        wait_until(lambda: _answers(note()), why="the API to be back")


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx2.TransportError):
        return WEB.get(f"{url}/readyz").status_code == 200
    return False
