"""What the Dockerfile says: its stages, which of them are images, and what stands in each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKERFILE = REPOSITORY / "Dockerfile"
TARGETS = ("api", "worker", "worker-cpu", "flower")


@dataclass(frozen=True)
class Stage:
    """One FROM and what follows it. ``lines`` are instructions, with continued lines joined and comments out."""

    name: str
    base: str
    lines: tuple[str, ...]


def text() -> str:
    """The Dockerfile without comments, each instruction on a line of its own."""
    kept = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return re.sub(r"\\\n\s*", "", "\n".join(kept))


def defaults() -> dict[str, str]:
    """The arguments before the first stage."""
    return dict(re.findall(r"^ARG (\w+)=(\S+)$", text().partition("\nFROM ")[0], re.MULTILINE))


def stages() -> dict[str, Stage]:
    """All stages by name."""
    parts = re.split(r"^FROM ", text(), flags=re.MULTILINE)[1:]
    found = [(part.splitlines()[0], [line for line in part.splitlines()[1:] if line]) for part in parts]
    return {head.split()[2]: Stage(head.split()[2], head.split()[0], tuple(lines)) for head, lines in found}


def lineage(target: str) -> list[Stage]:
    """The stages that an image consists of: its own, the one that it is made from, and so on."""
    known, found = stages(), [stages()[target]]
    while found[-1].base in known:
        found.append(known[found[-1].base])
    return found


def environ(target: str) -> dict[str, str]:
    """What an image sets for its processes."""
    made: dict[str, str] = {}
    for stage in reversed(lineage(target)):
        for line in stage.lines:
            if line.startswith("ENV "):
                made |= dict(re.findall(r"(\w+)=(\S+)", line))
    return made
