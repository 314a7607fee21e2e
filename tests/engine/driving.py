"""Drive an engine in a test and gather what it said, per job."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farm.settings import EngineSettings, ModelSettings
from workers.engine.engine import Engine
from workers.engine.protocol import Add, Admitted, Emitted, Event, Failed, Finished, SamplingParams, Token

if TYPE_CHECKING:
    from workers.engine.bloom import Bloom


@dataclass
class Said:
    """All that was said about one job."""

    tokens: list[Token] = field(default_factory=list)
    prompt_tokens: int | None = None
    reason: str | None = None
    tail: str = ""
    failed: Failed | None = None

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens) + self.tail


def bloom(folder: Path | str, **engine: Any) -> Bloom:
    """Load a Bloom for a test: one thread, and few small slots unless told otherwise."""
    # Here because it imports torch, which tests of the synthetic engine do without.
    from workers.engine.bloom import Bloom

    return Bloom(
        ModelSettings(id=str(folder)), EngineSettings(**{"threads": 1, "max_slots": 4, "max_context": 256, **engine})
    )


def add(id: str, prompt: str | list[int] = "some words", deadline_s: float | None = None, **params: int) -> Add:
    """A job of a few tokens, unless told otherwise."""
    return Add(id, prompt, SamplingParams(**{"max_tokens": 8, **params}), deadline_s=deadline_s)


def gather(events: Iterable[Event], said: dict[str, Said] | None = None) -> dict[str, Said]:
    """Sort events by job, checking the order in which they may come."""
    said = {} if said is None else said
    for event in events:
        one = said.setdefault(event.id, Said())
        assert one.reason is None, "something was said after the last word"
        assert one.failed is None, "something was said after the last word"
        match event:
            case Admitted(_, prompt_tokens):
                assert one.prompt_tokens is None
                one.prompt_tokens = prompt_tokens
            case Emitted(_, tokens):
                assert one.prompt_tokens is not None
                one.tokens += tokens
            case Finished(_, reason, tail):
                one.reason, one.tail = reason, tail
            case Failed():
                one.failed = event
    return said


def drive(engine: Engine, adds: Iterable[Add], arrive: Iterable[int] = ()) -> dict[str, Said]:
    """Add jobs and step until all is said. ``arrive`` tells the step at which each job comes; 0 by default."""
    coming = sorted(itertools.zip_longest(arrive, list(adds), fillvalue=0), key=lambda pair: pair[0])
    said: dict[str, Said] = {}
    step = 0
    while coming or engine.has_work:
        while coming and coming[0][0] <= step:
            engine.add(coming.pop(0)[1])
        gather(engine.step(), said)
        step += 1
    return said


def one(engine: Engine, prompt: str | list[int], resume: list[int] | None = None, **params: Any) -> Said:
    """Generate for a single prompt."""
    params.setdefault("max_tokens", 16)
    return drive(engine, [Add("job", prompt, SamplingParams(**params), resume or [])])["job"]
