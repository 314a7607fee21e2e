"""The tables of docs/metrics.md, from the declarations: ``python -m tests.metrics_table --write`` renews them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from api.metrics import API
from farm.metrics import LEDGER, Family
from workers.metrics import GPU, MODEL, SYSTEM

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
BEGIN = "<!-- from here to the end: python -m tests.metrics_table --write -->\n"
PARTS: tuple[tuple[str, Sequence[Family]], ...] = (
    ("The ledger: every part exports the same values", LEDGER),
    ("Each worker with a model", MODEL),
    ("Each worker with GPUs that NVML finds", GPU),
    ("Each system worker", SYSTEM),
    ("The API", API),
)


def table() -> str:
    """All families, part by part; then the buckets of histograms, and why these."""
    lines: list[str] = []
    for title, families in PARTS:
        lines += [f"\n## {title}\n", "| Name | Kind | Labels | Meaning |", "|---|---|---|---|"]
        lines += [_row(family) for family in families]
    lines += ["\n## Buckets\n", "| Histogram | Upper bounds | Why |", "|---|---|---|"]
    lines += [
        f"| `{family.name}` | {', '.join(f'{bound:g}' for bound in family.buckets)} | {family.reason} |"
        for _, families in PARTS
        for family in families
        if family.buckets
    ]
    return "\n".join(lines) + "\n"


def _row(family: Family) -> str:
    labels = ", ".join(f"`{label}`" for label in family.labels)
    return f"| `{family.name}` | {family.kind} | {labels} | {family.help} |"


def written(text: str) -> str:
    """The page with the table as it should be."""
    head, mark, _ = text.partition(BEGIN)
    assert mark, f"{PAGE.name} has lost the line {BEGIN!r}"
    return head + mark + table()


if __name__ == "__main__":
    current = PAGE.read_text(encoding="utf-8")
    if "--write" in sys.argv:
        PAGE.write_text(written(current), encoding="utf-8")
    else:
        sys.stdout.write(table())
