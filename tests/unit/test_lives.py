"""An engine that is kept running, with engines that live and die as told: orders that real ones seldom keep to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest

from farm.errors import EngineLost, ModelRefused
from farm.settings import EngineSettings
from tests.conftest import wait_until
from workers import lives as module
from workers.engine.protocol import Add, Command, Failed, Finished, Ready, Report
from workers.lives import Lives

pytestmark = pytest.mark.fast
READY = Ready(slots=4, context=64, kv_tokens=256, vocab=8, fingerprint="f", load_s=0.0, tokenizer="")
SETTINGS = EngineSettings(max_deaths=2, respawn_cap_s=0.01)


class Scripted:
    """An engine process without a process. ``script`` holds what each start raises, None if it loads; ``tests`` how
    each test ends: ok, failed, or died."""

    script: ClassVar[list[Exception | None]] = []
    tests: ClassVar[list[str]] = []
    all: ClassVar[list[Scripted]] = []
    at_start: ClassVar[Callable[[], None]] = staticmethod(lambda: None)

    def __init__(
        self, _settings: object, on_report: Callable[[Report], None], on_lost: Callable[[Scripted, str], None]
    ) -> None:
        self.on_report, self.on_lost = on_report, on_lost
        self.silent_s = 0.0
        self.end = "was ended by SIGKILL"
        self.is_killed = False
        self.was_tested = False
        self.all.append(self)

    def start(self) -> Ready:
        type(self).at_start()
        error = self.script.pop(0) if self.script else None
        if error is not None:
            raise error
        return READY

    def send(self, command: Command) -> None:
        assert isinstance(command, Add)
        self.was_tested = True
        how = self.tests.pop(0) if self.tests else "ok"
        if how == "died":
            threading.Thread(target=self.die).start()
            return
        event = Finished(command.id, "length") if how == "ok" else Failed(command.id, "not_finite", "nan")
        self.on_report(Report(1, 0, 0, [event]))

    def kill(self) -> None:
        self.is_killed = True

    def die(self) -> None:
        self.on_lost(self, "engine_died")


class Watched(Lives):
    """Lives, and what they said."""

    def __init__(self) -> None:
        self.ready: list[object] = []
        self.mistakes: list[Exception] = []
        self.lost: list[object] = []
        super().__init__(
            SETTINGS,
            on_report=lambda _: None,
            on_ready=self._hear,
            on_lost=lambda engine, _: self.lost.append(engine),
        )

    def _hear(self, engine: object, _ready: Ready) -> None:
        if self.mistakes:
            raise self.mistakes.pop()
        self.ready.append(engine)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """Lives of scripted engines."""
    monkeypatch.setattr(module, "EngineProcess", Scripted)
    Scripted.script, Scripted.tests, Scripted.all, Scripted.at_start = [], [], [], lambda: None
    lives = Watched()
    yield lives
    lives.end()


def test_the_first_engine_serves_untested(watched: Watched) -> None:
    """Nothing speaks against it."""
    assert watched.trouble == "starting"
    watched.start()
    assert (watched.trouble, watched.ready) == ("", Scripted.all)
    assert not Scripted.all[0].was_tested


def test_one_that_follows_a_death_must_generate_first(watched: Watched) -> None:
    """Engines that fail, or die of, their test get no job; the deaths add up until one passes."""
    watched.start()
    Scripted.tests = ["failed", "died", "ok"]
    Scripted.all[0].die()  # type: ignore[attr-defined]
    wait_until(lambda: len(watched.ready) == 2, why="an engine that passes")
    assert len(Scripted.all) == 4
    assert watched.serving is Scripted.all[3]
    assert watched.lost == Scripted.all[:1], "only one that served was lost"
    assert Scripted.all[1].is_killed
    assert watched.total_deaths == 3
    assert not watched.is_failing


def test_too_many_deaths_are_told_until_one_lives(watched: Watched) -> None:
    """With the reason of the latest, whether it loaded or not."""
    Scripted.script = [EngineLost("it ate bad weights"), EngineLost("it ate bad weights")]
    Scripted.tests = ["died"] * 3
    seen: list[str] = []
    Scripted.at_start = lambda: seen.append(watched.trouble)
    watched.start()
    assert seen == [
        "starting",
        "engine starting again: it ate bad weights",
        "engine failing: 2 deaths in a row, the latest: it ate bad weights",
        *(
            f"engine failing: {deaths} deaths in a row, the latest: engine_died, was ended by SIGKILL"
            for deaths in (3, 4, 5)
        ),
    ]
    assert watched.trouble == ""
    watched.gave_token()
    watched.serving = None
    assert watched.trouble == "starting"


def test_who_leaves_waits_for_no_engine(watched: Watched) -> None:
    """One that is loading is ended, and none is started after it."""
    is_loading, may_end = threading.Event(), threading.Event()

    def load(_: Scripted) -> Ready:
        is_loading.set()
        may_end.wait(10)
        raise EngineLost("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scripted, "start", load)
        thread = threading.Thread(target=watched.start)
        thread.start()
        is_loading.wait(10)
        watched.cease()
        assert Scripted.all[0].is_killed
        may_end.set()
        thread.join(10)
    assert len(Scripted.all) == 1
    assert watched.total_deaths == 0, "we ended it"


def test_a_model_that_is_refused_later_is_tried_again(watched: Watched) -> None:
    """What was served may be away for a moment, as a GPU's memory is; until it is back people are told."""
    watched.start()
    Scripted.script = [ModelRefused("no such file")] * 3
    Scripted.all[0].die()
    wait_until(lambda: watched.serving is not None, why="an engine that serves")
    assert watched.serving is not Scripted.all[0]
    assert watched.total_deaths == 4
    assert len(watched.ready) == 2


def test_a_machine_without_room_for_a_process_is_tried_again(watched: Watched) -> None:
    """Memory or processes may be short for a moment, as after the kernel has ended an engine for its memory."""
    watched.start()
    Scripted.script = [OSError(12, "Cannot allocate memory")]
    Scripted.all[0].die()
    wait_until(lambda: watched.serving is Scripted.all[-1], why="an engine that serves")
    assert watched.total_deaths == 2
    assert Scripted.all[1].is_killed


def test_whatever_goes_wrong_another_engine_is_started(watched: Watched) -> None:
    """A mistake of ours in a start, or in making its engine known, ends that engine and not the worker's last hope."""
    watched.start()
    Scripted.script = [ValueError("no message")]
    watched.mistakes = [KeyError("no such field")]
    Scripted.all[0].die()
    wait_until(lambda: len(watched.ready) == 2, why="an engine that is made known")
    assert len(Scripted.all) == 4
    assert watched.serving is Scripted.all[3]
    assert all(engine.is_killed for engine in Scripted.all[1:3])
    assert watched.total_deaths == 3
    assert "no such field" not in watched.trouble


def test_a_model_that_is_refused_at_first_is_not_served(watched: Watched) -> None:
    """Then nothing was right before, and trying again would not help."""
    Scripted.script = [ModelRefused("no such file")]
    with pytest.raises(ModelRefused, match="no such file"):
        watched.start()
    assert watched.serving is None
