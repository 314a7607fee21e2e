"""farm top as people run it: in a terminal of its own, and for programs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from farm.ledger.jobs import Jobs
from farm.local.server import EmbeddedServer
from farm.settings import Settings
from tests.commands import FARM, environ, farm
from tests.conftest import wait_until
from tests.farmhand import Farmhand, quick
from tests.integration.conftest import submit, wait_for_all

ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"


class Terminal:
    """``farm top`` in a terminal of 80 by 24."""

    def __init__(self, url: str, *args: object) -> None:
        self.ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(self.theirs)
        self.written = b""
        env = {name: text for name, text in environ(REDIS__URL=url).items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [*FARM, "top", "--interval", "0.2", *map(str, args)],
            env={**env, "TERM": "xterm-256color"},
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            start_new_session=True,
        )
        os.set_blocking(self.ours, False)

    def shows(self, words: str) -> bool:
        """Whether these words were drawn by now."""
        with contextlib.suppress(BlockingIOError):
            self.written += os.read(self.ours, 1 << 20)
        return words.encode() in self.written

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def url(settings: Settings, client: redis.Redis) -> str:
    assert settings.redis.url is not None
    return settings.redis.url.get_secret_value()


@pytest.fixture
def terminal(url: str) -> Iterator[Terminal]:
    opened = Terminal(url)
    yield opened
    opened.close()


@pytest.mark.parametrize("how", ["q", "ctrl-c", "term"])
def test_quitting_restores_the_terminal(terminal: Terminal, how: str) -> None:
    """q, Ctrl-C and SIGTERM end it with 0, and leave screen, cursor and keyboard as they were."""
    wait_until(lambda: terminal.shows("q quits"), why="the first picture")
    assert ENTER in terminal.written
    if how == "q":
        os.write(terminal.ours, b"\x1b[A")  # an arrow is no Escape
        os.write(terminal.ours, b"q")
    else:
        terminal.process.send_signal(signal.SIGINT if how == "ctrl-c" else signal.SIGTERM)
    assert terminal.process.wait(10) == 0
    assert terminal.shows("\x1b[?1049l")
    assert terminal.written.rindex(LEAVE) > terminal.written.rindex(ENTER)
    assert terminal.written.rindex(b"\x1b[?25h") > terminal.written.rindex(b"\x1b[?25l")
    assert termios.tcgetattr(terminal.theirs) == terminal.before
    assert "Traceback" not in terminal.written.decode()


def test_it_follows_the_farm(terminal: Terminal, settings: Settings, jobs: Jobs) -> None:
    """An empty farm says what to do next; jobs and workers show as they come."""
    wait_until(lambda: terminal.shows("No workers") and terminal.shows("farm submit"), why="what to do next")
    with Farmhand(quick(settings), tokens_per_beat=1):
        [job] = submit(jobs, 1, max_tokens=20)
        wait_for_all(jobs, [job])
        wait_until(lambda: terminal.shows("hand") and terminal.shows(job), why="worker and job to show")
    wait_until(lambda: terminal.shows("silent"), why="the worker's silence to show")
    assert terminal.process.poll() is None


def test_a_server_that_goes_is_waited_for(tmp_path: Path) -> None:
    """While the server is away it says so and keeps the last picture; it goes on when the server is back."""
    server = EmbeddedServer(tmp_path)
    server.start()
    terminal = Terminal(server.url)
    try:
        wait_until(lambda: terminal.shows("q quits"), why="the first picture")
        server.stop()
        wait_until(lambda: terminal.shows("trying again"), why="the silence to be told")
        server.start()
        terminal.written = b""
        wait_until(lambda: terminal.shows("q quits"), why="the next picture")
    finally:
        terminal.close()
        server.stop()


def test_once_for_programs(settings: Settings, jobs: Jobs, url: str) -> None:
    """--once --json is one line: queues, workers with tokens per second, jobs that ended last, what was put back."""
    with Farmhand(quick(settings), tokens_per_beat=2) as hand:
        done = submit(jobs, 2, max_tokens=4, priority="high")
        wait_for_all(jobs, done)
        submit(jobs, 1, max_tokens=2_000)
        wait_until(lambda: len(hand.claims) == 3, why="the long job to run")
        said = farm("top", "--once", "--json", REDIS__URL=url)
        hand.tokens_per_beat = 0
    assert said.code == 0, said.err
    [seen] = said.lines
    [worker] = seen["workers"]
    assert worker["name"] == "hand"
    assert worker["tokens_per_s"] == seen["tokens_per_s"] > 0
    assert worker["tokens"] > 8
    assert seen["models"][0]["running"] == 1
    assert {job["id"] for job in seen["recent"]} == set(done)
    assert (seen["recent"][0]["tokens"], seen["recent"][0]["worker"], seen["recent"][0]["priority"]) == (
        4,
        "hand",
        "high",
    )
    assert seen["tokens_today"] == 8 + sum(jobs.view(job_id).usage.prompt_tokens for job_id in done)
    assert seen["resumed_tokens"] == 0
    assert (seen["dead"], seen["released"], seen["waiting"]) == (0, {}, 0)


def test_without_a_terminal_it_says_what_to_give(url: str) -> None:
    """Into a pipe it draws nothing unless asked for one picture or for JSON."""
    said = farm("top", REDIS__URL=url)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "--once" in said.err
    said = farm("top", "--once", REDIS__URL=url)
    assert said.code == 0
    assert "No workers" in said.out
    assert "\x1b" not in said.out
    assert "q quits" not in said.out


def test_no_farm_is_3(tmp_path: Path) -> None:
    """Where no farm runs the line says how to start one."""
    said = farm("top", "--once", LOCAL__STATE_DIR=tmp_path)
    assert said.code == 3
    assert "farm up" in said.err
