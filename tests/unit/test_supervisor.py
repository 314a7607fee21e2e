"""The supervisor's decisions, with parts that die as told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from farm.errors import FarmError, ModelRefused
from farm.local import supervisor as module
from farm.local.server import ServerFailed
from farm.local.supervisor import Event, StackFailed, Supervisor
from tests.conftest import wait_until

pytestmark = pytest.mark.fast


class FakePart:
    """A part without a process. ``deaths`` holds how each start ends; after the last it lives."""

    stop_s = 0.3
    is_disposable = True

    def __init__(
        self, name: str, deaths: list[int | FarmError] | None = None, *, rank: int = 0, is_essential: bool = True
    ) -> None:
        self.name = name
        self.log_path = Path("logs") / f"{name}.log"
        self.rank = rank
        self.is_essential = is_essential
        self.is_stubborn = False
        self.starts = 0
        self.told: list[str] = []
        self.is_over = threading.Event()
        self._deaths = list(deaths or [])
        self._status: int | None = None

    @property
    def pid(self) -> int | None:
        return 1 if self.starts else None

    def start(self) -> None:
        self.starts += 1
        end = self._deaths.pop(0) if self._deaths else None
        if isinstance(end, FarmError):
            raise end
        self._status = end

    def ended(self) -> int | None:
        return self._status

    def terminate(self) -> None:
        self.told.append(f"terminate {self.name}")
        if not self.is_stubborn:
            self._status = 0
        self.is_over.set()

    def kill(self) -> None:
        self.told.append(f"kill {self.name}")
        self._status = -9

    def last_words(self) -> str:
        return "it was the cat"


@contextmanager
def _supervised(*parts: FakePart) -> Iterator[tuple[Supervisor, list[Event]]]:
    events: list[Event] = []

    def set_up(supervisor: Supervisor) -> None:
        for part in parts:
            supervisor.launch(part)

    supervisor = Supervisor(set_up, events.append)
    try:
        supervisor.start()
        yield supervisor, events
    finally:
        supervisor.stop()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_S", (0.0,))
    monkeypatch.setattr(module, "TICK_S", 0.005)


def test_a_part_that_dies_is_started_again() -> None:
    """Each death and each new start is said, with the reason's last words."""
    part = FakePart("worker", [1, -11])
    with _supervised(part) as (_, events):
        wait_until(lambda: part.starts == 3 and len(events) == 4, why="two restarts")
    assert [event.kind for event in events] == ["ended", "restarted"] * 2
    assert events[0].text == "ended with status 1; starting it again: it was the cat"
    assert events[2].text == "was ended by SIGSEGV; starting it again"


def test_an_essential_part_that_never_lives_ends_the_start() -> None:
    """Five deaths before all is ready have a reason that time won't cure: it is told, with the log's place."""
    part = FakePart("worker", [1] * 9)
    with _supervised(part) as (supervisor, _):

        def failed() -> bool:
            try:
                supervisor.check()
            except StackFailed as error:
                assert str(error) == "worker ended with status 1 5 times: it was the cat; see logs/worker.log"  # noqa: PT017
                return True
            return False

        wait_until(failed, why="the supervisor to give up")
    assert part.starts == 5


def test_the_rest_goes_on_without_a_dispensable_part() -> None:
    """Flower may fail to start for good; the farm does not need it."""
    part = FakePart("flower", [1] * 9, is_essential=False)
    with _supervised(part) as (supervisor, events):
        wait_until(lambda: supervisor.given_up == {"flower"}, why="the supervisor to give up")
        supervisor.check()
    assert events[-1].kind == "gave_up"


def test_once_all_is_ready_nothing_is_given_up() -> None:
    """A farm that was well may become well again: a part is started as often as it takes."""
    part = FakePart("worker", [1] * 12)
    with _supervised(part) as (supervisor, _):
        supervisor.is_settled = True
        wait_until(lambda: part.starts == 13, why="twelve restarts")
        supervisor.check()


def test_a_refused_model_is_not_tried_again() -> None:
    """A worker that says that it can't serve its model is believed."""
    part = FakePart("worker", [78])
    with _supervised(part) as (supervisor, _):

        def refused() -> bool:
            try:
                supervisor.check()
            except ModelRefused as error:
                return str(error) == "it was the cat"
            return False

        wait_until(refused, why="the refusal")
    assert part.starts == 1


def test_a_part_that_does_not_start_again_is_tried_later() -> None:
    """A server whose disk is full for a while comes back when it has room."""
    part = FakePart("redis", [-9, ServerFailed("disk full"), ServerFailed("disk full")])
    with _supervised(part) as (supervisor, events):
        supervisor.is_settled = True
        wait_until(lambda: events and events[-1].kind == "restarted", why="the restart")
    assert [event.text for event in events[1:3]] == ["does not start: disk full"] * 2


def test_what_fails_at_once_is_raised() -> None:
    """A part that can't be started at all fails the start, and what runs already is ended."""
    first, second = FakePart("redis"), FakePart("worker", [ServerFailed("no")])
    with pytest.raises(ServerFailed), _supervised(first, second):
        pass
    assert first.told == ["terminate redis", "kill redis"]


def test_parts_end_in_order_and_the_stubborn_are_killed() -> None:
    """Workers end before the server; whoever does not end in its time is killed."""
    worker, server = FakePart("worker"), FakePart("redis", rank=9)
    worker.is_stubborn = True
    told = worker.told = server.told
    with _supervised(worker, server):
        pass
    assert told == ["terminate worker", "kill worker", "terminate redis", "kill redis"]
    assert worker.ended() == -9


def test_asking_twice_kills_at_once() -> None:
    """The second Ctrl-C does not wait for those that drain."""
    part = FakePart("worker")
    part.is_stubborn, part.stop_s = True, 3_600.0
    with _supervised(part) as (supervisor, _):
        supervisor.ask_to_stop()
        assert supervisor.wait(0)
        part.is_over.wait(5)
        supervisor.ask_to_stop()
    assert part.told == ["terminate worker", "kill worker"]
