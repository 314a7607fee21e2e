"""The thread that shows that a worker lives."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from farm.errors import ServerUnreachable
from tests.conftest import wait_until
from workers.beat import Beat

pytestmark = pytest.mark.fast


class Calls:
    """What the beat calls. It may raise, once for each error given."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.times: list[float] = []
        self.interval_s = 3_600.0

    def __call__(self) -> None:
        self.times.append(time.monotonic())
        if self.errors:
            raise self.errors.pop(0)


@contextmanager
def beating(calls: Calls) -> Iterator[Beat]:
    beat = Beat(calls, lambda: calls.interval_s)
    beat.start()
    try:
        yield beat
    finally:
        beat.stop()


def test_it_goes_on_whatever_the_call_raises() -> None:
    """Neither a silent server nor a mistake of ours ends it, and it knows whether the server answered last time."""
    calls = Calls(ServerUnreachable("gone"), ValueError("ours"))
    calls.interval_s = 0.01
    with beating(calls) as beat:
        wait_until(lambda: len(calls.times) > 5, why="more calls")
        assert beat.is_answered
        calls.errors = [ServerUnreachable("gone")] * 1_000
        wait_until(lambda: not beat.is_answered, why="it to notice")
        assert beat.silent_s < 10


def test_waking_it_shortens_the_wait_and_no_more() -> None:
    """The first job of an idle worker does not wait out the idle interval; a wake-up alone makes no call."""
    calls = Calls()
    with beating(calls) as beat:
        wait_until(lambda: calls.times, why="the first call")
        for _ in range(3):
            beat.wake()
        assert len(calls.times) == 1
        calls.interval_s = 0.05
        beat.wake()
        wait_until(lambda: len(calls.times) > 1, why="the next call")
        assert calls.times[1] - calls.times[0] >= 0.05


def test_it_stops_at_once() -> None:
    """Whatever it waits for."""
    before = set(threading.enumerate())
    with beating(Calls()):
        [beat] = set(threading.enumerate()) - before
    beat.join(10)
    assert not beat.is_alive()
