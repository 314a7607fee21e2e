"""What probes are told, by the facts of a worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from farm.settings import load_settings
from workers.health import Health

pytestmark = pytest.mark.fast


@dataclass
class Facts:
    """As much of a host as its health is made of."""

    @dataclass
    class Thread:
        silent_s: float = 0.0
        is_answered: bool = True

    @dataclass
    class Runner:
        lives: Any
        trouble: str = ""

    beat: Thread = field(default_factory=Thread)
    keeper: Thread = field(default_factory=Thread)
    runner: Any = field(default_factory=lambda: Facts.Runner(Facts.Thread()))
    is_stopping: bool = False
    is_known: bool = True


@pytest.fixture
def facts() -> Facts:
    """A worker that is well."""
    return Facts()


@pytest.fixture
def health(facts: Facts) -> Health:
    return Health(load_settings({"FARM_ENGINE__WATCHDOG_S": "30"}), facts)  # type: ignore[arg-type]


def test_a_worker_that_is_well_is_alive_and_ready(health: Health, facts: Facts) -> None:
    """With an engine or without one."""
    assert (health.why_dead(), health.why_unready()) == ("", "")
    facts.runner = None
    assert (health.why_dead(), health.why_unready()) == ("", "")


def test_what_mends_by_itself_is_no_reason_to_kill(health: Health, facts: Facts) -> None:
    """Without server or engine, while it starts or drains, a worker is not ready, and alive."""
    reasons = []
    facts.is_known = False
    reasons.append(health.why_unready())
    facts.beat.is_answered = False
    reasons.append(health.why_unready())
    facts.runner.trouble = "engine failing: 5 deaths in a row"
    reasons.append(health.why_unready())
    facts.is_stopping = True
    reasons.append(health.why_unready())
    assert reasons == ["starting", "server unreachable", "engine failing: 5 deaths in a row", "draining"]
    assert health.why_dead() == ""


def test_threads_that_stand_still_are(health: Health, facts: Facts) -> None:
    """A beat, a keeper, or an engine together with its watchdog."""
    facts.beat.silent_s = 61
    assert health.why_dead() == "beat silent for 61 s"
    facts.beat.silent_s, facts.keeper.silent_s = 0, 61
    assert health.why_dead() == "keeper silent for 61 s"
    facts.keeper.silent_s, facts.runner.lives.silent_s = 0, 39
    assert health.why_dead() == ""
    facts.runner.lives.silent_s = 41
    assert health.why_dead() == "engine silent for 41 s, and its watchdog too"
