"""The synthetic engine's faults: they strike whom the rules name, and nobody else."""

from __future__ import annotations

import os
import signal

import pytest

from farm.errors import SettingsError
from farm.settings import EngineSettings, load_settings
from tests.engine.driving import drive, gather, one
from workers.engine.engine import Engine
from workers.engine.protocol import Add, SamplingParams
from workers.engine.synthetic import Synthetic

pytestmark = pytest.mark.fast


class Killed(Exception):
    """What the kill of this process was turned into."""


def engine(*rules: str) -> Engine:
    return Engine(Synthetic(EngineSettings(kind="synthetic", synthetic_faults=list(rules))), 128)


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kill becomes an exception: the test would end with it otherwise."""

    def kill(pid: int, number: int) -> None:
        assert (pid, number) == (os.getpid(), signal.SIGKILL)
        raise Killed

    monkeypatch.setattr(os, "kill", kill)


def tokens_until_killed(engine: Engine, prompt: str, resume: list[int]) -> int:
    """How many tokens it gave, those of earlier attempts included."""
    engine.add(Add("a", prompt, SamplingParams(max_tokens=50), resume))
    said = gather([])
    for _ in range(50):
        try:
            gather(engine.step(), said)
        except Killed:
            return len(resume) + sum(len(one.ids) for one in said.values())
    pytest.fail("it was not killed")


@pytest.mark.usefixtures("killed")
@pytest.mark.parametrize(
    ("rule", "resumed", "given"), [("die@0", 0, 0), ("die@4", 0, 4), ("die@4", 3, 4), ("die+3", 0, 3), ("die+3", 5, 8)]
)
def test_dies_where_the_rule_says(rule: str, resumed: int, given: int) -> None:
    """die@K counts the completion's tokens, die+K those since it was resumed."""
    kept = one(engine(), "a mandrake cried", max_tokens=10).ids[:resumed]
    assert tokens_until_killed(engine(f"mandrake={rule}"), "a mandrake cried", kept) == given


@pytest.mark.usefixtures("killed")
def test_others_are_left_alone() -> None:
    """A prompt without the word gives what it gives without the rule, also one that holds it in a longer word."""
    for prompt in ("a goat cried", "mandrakes cried"):
        assert one(engine("mandrake=die@0"), prompt, max_tokens=10).ids == one(engine(), prompt, max_tokens=10).ids


@pytest.mark.usefixtures("killed")
def test_a_star_means_everybody() -> None:
    """Prompts of token ids too."""
    broken = engine("*=die@2")
    assert tokens_until_killed(broken, "whatever", []) == 2
    broken = engine("*=die@0")
    broken.add(Add("a", [1, 2], SamplingParams(max_tokens=5)))
    with pytest.raises(Killed):
        broken.step()


def test_fails_so_often_and_then_no_more() -> None:
    """fail*N is an error worth a retry, N times for each prompt."""
    faulty = engine("nettle=fail*2")
    for _ in range(2):
        failed = drive(faulty, [Add("a", "a nettle", SamplingParams(max_tokens=3))])["a"].failed
        assert failed is not None
        assert (failed.code, failed.retryable) == ("fault_asked", True)
    assert one(faulty, "a nettle", max_tokens=3).ids == one(engine(), "a nettle", max_tokens=3).ids


@pytest.mark.parametrize("rule", ["mandrake", "mandrake=", "=die@1", "mandrake=die@", "mandrake=cry@1", "a b=die@1"])
def test_a_rule_that_is_none_is_refused(rule: str) -> None:
    """With the setting's name and what a rule looks like."""
    with pytest.raises(SettingsError, match=r"FARM_ENGINE__SYNTHETIC_FAULTS: .* WORD=die@K"):
        engine(rule)


def test_a_real_engine_takes_no_faults() -> None:
    """They are for the synthetic one alone."""
    with pytest.raises(SettingsError, match="SYNTHETIC_FAULTS is for FARM_ENGINE__KIND=synthetic alone"):
        load_settings({"FARM_ENGINE__SYNTHETIC_FAULTS": "mandrake=die@0"})
