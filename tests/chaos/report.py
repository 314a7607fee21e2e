"""What ``python -m tests.chaos --all`` found, as the table in docs/guarantees.md."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import commit, machine

DOCS = Path(__file__).parents[2] / "docs" / "guarantees.md"
BEGIN = "<!-- figures: written by `python -m tests.chaos --all --docs` -->"
END = "<!-- end of figures -->"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. ``is_kept`` says whether the figure reaches its target."""

    what: str
    target: str
    figure: str
    is_kept: bool

    @property
    def remark(self) -> str:
        return "" if self.is_kept else " (**missed**)"


def table(rows: list[Row]) -> str:
    """The rows in Markdown; a figure that misses its target says so."""
    head = ["| what | target | figure |", "|---|---|---|"]
    return "\n".join([*head, *(f"| {row.what} | {row.target} | {row.figure}{row.remark} |" for row in rows)])


def section(rows: list[Row], seed: int, minutes: float) -> str:
    """The table, and where and when it was measured."""
    where = machine()
    today = datetime.datetime.now(tz=datetime.UTC).date()
    head = f"{today}, {where['cores']} cores of {where['cpu']}, commit {commit()}, seed {seed}, {minutes:.0f} minutes."
    return f"{head}\n\n{table(rows)}"


def with_figures(docs: str, figures: str) -> str:
    """The docs with what stands between the two marks replaced. Raises ValueError if a mark is missing."""
    head, begin, rest = docs.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the docs lack the marks {BEGIN} and {END}")
    return f"{head}{BEGIN}\n\n{figures}\n\n{END}{tail}"
