"""The engine process over a real socket: it says what it must, and never outlives its parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from benchmarks.workload import save_bloom
from tests.engine.driving import bloom, gather, one
from workers.engine.checkpoint import BloomConfig
from workers.engine.engine import Engine
from workers.engine.protocol import (
    Add,
    Cancel,
    Halt,
    Halted,
    Message,
    Ready,
    Refused,
    Report,
    SamplingParams,
    decode,
    encode,
)

WAIT_S = 60.0


@contextmanager
def engine(**environ: str) -> Iterator[tuple[Connection, subprocess.Popen[bytes]]]:
    """A real engine process and our end of its connection."""
    ours, theirs = socket.socketpair()
    env = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "workers.engine", "--fd", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        env=env | {"FARM_ENGINE__THREADS": "1", **environ},
    )
    theirs.close()
    connection = Connection(ours.detach())
    try:
        yield connection, process
    finally:
        connection.close()
        process.kill()
        process.wait()


def receive(connection: Connection) -> Message:
    """The next message; fails if none comes."""
    assert connection.poll(WAIT_S), "the engine said nothing"
    message = decode(connection.recv_bytes())
    assert isinstance(message, Ready | Refused | Report | Halted)
    return message


def _drain(connection: Connection) -> None:
    while True:
        receive(connection)


def finish(connection: Connection, add: Add) -> list[int]:
    """Generate for one job and return its tokens."""
    connection.send_bytes(encode(add))
    said = gather([])
    while add.id not in said or said[add.id].reason is None:
        message = receive(connection)
        assert isinstance(message, Report)
        gather(message.events, said)
    return said[add.id].ids


def test_the_process_generates_what_the_engine_generates(tmp_path: Path) -> None:
    """Ready first, then the tokens that an engine in this process gives."""
    folder = save_bloom(tmp_path / "bloom", BloomConfig(vocab=300, hidden=32, layers=2, heads=2))
    with engine(FARM_MODEL__ID=str(folder), FARM_ENGINE__MAX_CONTEXT="256") as (connection, _):
        ready = receive(connection)
        assert isinstance(ready, Ready)
        assert (ready.context, ready.vocab, Path(ready.tokenizer).name) == (256, 300, "tokenizer.json")
        got = finish(connection, Add("a", "hello", SamplingParams(max_tokens=12)))
    model = bloom(folder)
    assert got == one(Engine(model, 128), "hello", max_tokens=12).ids
    assert ready.fingerprint == model.ready.fingerprint


def test_a_model_that_cannot_be_served_is_refused_with_the_reason(tmp_path: Path) -> None:
    """The first and only message says why; the process ends by itself."""
    with engine(FARM_MODEL__ID=str(tmp_path / "nowhere")) as (connection, process):
        refused = receive(connection)
        assert isinstance(refused, Refused)
        assert refused.code == "model_refused"
        assert "nowhere does not exist" in refused.message
        assert process.wait(WAIT_S) == 0


def test_a_misspelt_setting_is_refused(tmp_path: Path) -> None:
    """Settings are checked before the model is loaded."""
    with engine(FARM_ENGINE__SLOTS="3") as (connection, _):
        refused = receive(connection)
        assert isinstance(refused, Refused)
        assert (refused.code, "FARM_ENGINE__MAX_SLOTS" in refused.message) == ("settings", True)


def test_an_idle_engine_beats_and_ends_with_its_connection() -> None:
    """Beats come while there is nothing to do; when the other end closes, the process ends."""
    with engine(FARM_ENGINE__KIND="synthetic") as (connection, process):
        assert isinstance(receive(connection), Ready)
        beat = receive(connection)
        assert isinstance(beat, Report)
        assert (beat.steps, beat.running, beat.waiting, beat.events) == (0, 0, 0, [])
        connection.close()
        assert process.wait(WAIT_S) == 0


def test_the_engine_ends_while_it_is_generating_when_its_parent_is_gone() -> None:
    """Work in hand does not keep an orphan alive."""
    with engine(FARM_ENGINE__KIND="synthetic", FARM_ENGINE__SYNTHETIC_STEP_S="0.01") as (connection, process):
        connection.send_bytes(encode(Add("a", "hello", SamplingParams(max_tokens=2000))))
        assert isinstance(receive(connection), Ready)
        assert isinstance(receive(connection), Report)
        connection.close()
        assert process.wait(WAIT_S) == 0


def test_an_engine_that_is_sent_nonsense_ends_rather_than_going_deaf() -> None:
    """A message that nobody wrote ends the process with an error, so that the worker starts another."""
    with engine(FARM_ENGINE__KIND="synthetic") as (connection, process):
        assert isinstance(receive(connection), Ready)
        connection.send_bytes(b"{")
        assert process.wait(WAIT_S) == 1


def test_signals_for_the_worker_do_not_end_the_engine() -> None:
    """SIGINT and SIGTERM reach the whole process group; the worker alone decides when its engine ends."""
    with engine(FARM_ENGINE__KIND="synthetic") as (connection, process):
        assert isinstance(receive(connection), Ready)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert len(finish(connection, Add("a", "hello", SamplingParams(max_tokens=5)))) == 5
        assert process.poll() is None


def test_a_killed_engine_is_noticed_at_once_and_its_job_goes_on_in_another() -> None:
    """SIGKILL ends the connection; a second engine resumes from the tokens that came through."""
    add = Add("a", "hello", SamplingParams(max_tokens=40))
    with engine(FARM_ENGINE__KIND="synthetic", FARM_ENGINE__SYNTHETIC_STEP_S="0.02") as (connection, process):
        connection.send_bytes(encode(add))
        said = gather([])
        while len(said[add.id].ids if add.id in said else []) < 5:
            message = receive(connection)
            gather(message.events if isinstance(message, Report) else [], said)
        process.kill()
        with pytest.raises((EOFError, ConnectionResetError)):
            _drain(connection)
    resumed = said[add.id].ids
    with engine(FARM_ENGINE__KIND="synthetic") as (connection, _):
        receive(connection)
        rest = finish(connection, Add("a", "hello", add.params, resume=resumed))
        assert resumed + rest == finish(connection, Add("b", "hello", add.params))


def test_a_cancelled_job_frees_the_engine() -> None:
    """After Cancel the engine is idle, and says no more about the job."""
    with engine(FARM_ENGINE__KIND="synthetic", FARM_ENGINE__SYNTHETIC_STEP_S="0.01") as (connection, _):
        receive(connection)
        connection.send_bytes(encode(Add("a", "hello", SamplingParams(max_tokens=2000))))
        while not (isinstance(message := receive(connection), Report) and message.running):
            pass
        connection.send_bytes(encode(Cancel("a")))
        while not (isinstance(message := receive(connection), Report) and not message.running):
            pass
        assert message.events == []


def test_a_halted_engine_says_all_that_it_computed() -> None:
    """Halt leaves no token unsaid and no job behind; the engine goes on with what comes next."""
    adds = [Add(name, f"hello {name}", SamplingParams(max_tokens=2000)) for name in "abc"]
    with engine(FARM_ENGINE__KIND="synthetic", FARM_ENGINE__SYNTHETIC_STEP_S="0.005") as (connection, _):
        for add in adds:
            connection.send_bytes(encode(add))
        said = gather([])
        while len(said) < 3 or min(len(one.ids) for one in said.values()) < 8:
            message = receive(connection)
            gather(message.events if isinstance(message, Report) else [], said)
        connection.send_bytes(encode(Halt()))
        while not isinstance(message := receive(connection), Halted):
            assert isinstance(message, Report)
            gather(message.events, said)
            last = message
        assert (last.running, last.waiting) == (0, 0)
        assert last.stats.generated_tokens == sum(len(one.ids) for one in said.values())
        assert {one.reason for one in said.values()} == {None}
        again = Add("d", "hello a", SamplingParams(max_tokens=8))
        assert finish(connection, again) == said["a"].ids[:8]
