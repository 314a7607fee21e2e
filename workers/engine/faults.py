"""What the synthetic engine does to chosen prompts, so that a real worker can be seen to lose a real engine.

A rule is WORD=ACT, for prompts that hold the word; * stands for all prompts:

    die@K    the process is killed once the completion has K tokens; 0 is at prefill
    die+K    the process is killed K tokens after each start or resumption
    fail*N   the first N times that this process meets the prompt, it fails with an error worth a retry
"""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass

from farm.errors import FarmError, SettingsError
from workers.engine.sequence import Sequence

SETTING = "FARM_ENGINE__SYNTHETIC_FAULTS"
_RULE = re.compile(r"^(?P<word>[^=\s]+)=(?P<act>die@|die\+|fail\*)(?P<count>\d{1,9})$")


class FaultAsked(FarmError):
    """A prompt failed because a rule says so."""

    code = "fault_asked"
    retryable = True


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to prompts that hold ``word``: see the module."""

    word: str
    act: str
    count: int

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read WORD=ACT. Raises SettingsError."""
        found = _RULE.match(text)
        if found is None:
            raise SettingsError(f"{SETTING}: {text!r} is no rule; give WORD=die@K, WORD=die+K or WORD=fail*N")
        return cls(found["word"], found["act"], int(found["count"]))


class Faults:
    """The rules, and which prompts they concern. Without rules it does nothing."""

    def __init__(self, rules: list[str]) -> None:
        self._rules = [Rule.parse(text) for text in rules]
        self._everyone = next((rule for rule in self._rules if rule.word == "*" and rule.act != "fail*"), None)
        self._doomed: dict[tuple[int, ...], Rule] = {}
        self._failed: dict[str, int] = {}
        self._started_at: dict[str, int] = {}

    def meet(self, prompt: str, tokens: list[int]) -> None:
        """Take note of a prompt that was tokenized. Raises FaultAsked where a rule has it fail."""
        for rule in self._rules:
            if rule.word != "*" and rule.word not in prompt.split():
                continue
            if rule.act != "fail*":
                self._doomed[tuple(tokens)] = rule
            elif self._failed.get(prompt, 0) < rule.count:
                self._failed[prompt] = self._failed.get(prompt, 0) + 1
                raise FaultAsked(f"{SETTING} has this prompt fail {rule.count} times")

    def strike(self, sequences: list[Sequence]) -> None:
        """Kill the process if one of these sequences is where a rule has it die."""
        if not self._doomed and self._everyone is None:
            return
        for sequence in sequences:
            rule = self._doomed.get(tuple(sequence.tokens[: sequence.prompt_tokens]), self._everyone)
            if rule is None:
                continue
            start = self._started_at.setdefault(sequence.id, sequence.output_tokens) if rule.act == "die+" else 0
            if sequence.output_tokens - start == rule.count:
                os.kill(os.getpid(), signal.SIGKILL)
