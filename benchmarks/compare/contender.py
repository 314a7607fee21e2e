"""What is compared: a contender as the plan names it, and what a runner module offers.

Imported by every contender's interpreter, so it knows the standard library alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

Outputs: TypeAlias = list[list[int]]
Request: TypeAlias = tuple[list[int], int]
"""A prompt's tokens, and exactly how many to generate."""
Options: TypeAlias = Mapping[str, int | str | bool]


@dataclass(frozen=True, slots=True)
class Generated:
    """The tokens of each request, and figures that only the engine knows, such as its steps."""

    outputs: Outputs
    facts: dict[str, float] = field(default_factory=dict)


Generate: TypeAlias = Callable[[list[Request]], Generated]


class Runner(Protocol):
    """A module in ``runners``. Importing it raises ModuleNotFoundError where its engine is not installed."""

    @staticmethod
    def ready(folder: Path, options: Options) -> AbstractContextManager[Generate]:
        """An engine that has loaded the checkpoint in ``folder`` and generates greedily, past any end-of-text."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One row of the comparison."""

    name: str
    label: str
    runner: str
    rounds: int = 1
    options: Options = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    """Settings of the farm for its processes, such as FARM_ENGINE__KV_BYTES."""
    environ: Mapping[str, str] = field(default_factory=dict)
    """What else its processes find in their environment."""
    requests: int | None = None
    """Only the first so many requests, where all of them would take too long; tokens/s is of those."""
    precision: Literal["fp32", "int8"] = "fp32"
    """Of the weights. Only fp32 can be held to the reference's tokens."""
