"""A record as a bar chart in SVG, readable on light and dark pages."""

from __future__ import annotations

from html import escape
from pathlib import Path

from benchmarks.compare.results import Record

WIDTH = 860
LABELS = 350
FIGURES = 130
BAR = 20
PITCH = 30
TOP = 44
OURS = "#2f7d4f"
THEIRS = "#8a94a0"
INK = "#7a7a7a"


def chart_path(record_path: Path) -> Path:
    """Where the chart of a record lies: beside it."""
    return record_path.with_suffix(".svg")


def write_chart(found: Record, record_path: Path) -> Path:
    """Draw a record; returns where."""
    path = chart_path(record_path)
    path.write_text(svg(found))
    return path


def svg(found: Record) -> str:
    """Tokens per second, slowest first; ours in green."""
    rows = sorted(found["contenders"].items(), key=lambda item: item[1]["tokens_per_s"])
    most = max(row["tokens_per_s"] for _, row in rows)
    height = TOP + PITCH * len(rows) + 8
    model, work = found["model"], found["workload"]
    title = f"tokens/s, Bloom {model['hidden']}×{model['layers']}×{model['heads']}, {work['requests']} requests"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="14">',
        _text(0, 20, f"{title}, {found['machine']['cores']} cores", weight="bold"),
    ]
    for number, (name, row) in enumerate(rows):
        y = TOP + PITCH * number
        length = (WIDTH - LABELS - FIGURES) * row["tokens_per_s"] / most
        color = OURS if name.startswith(("engine", "farm")) else THEIRS
        figure = f"{row['tokens_per_s']:,.0f}"
        if "times_static_16" in row:
            figure += f"  ({row['times_static_16']:.1f}×)"
        parts += [
            _text(LABELS - 10, y + 15, row["label"], anchor="end"),
            f'<rect x="{LABELS}" y="{y}" width="{length:.1f}" height="{BAR}" rx="3" fill="{color}"/>',
            _text(LABELS + length + 8, y + 15, figure),
        ]
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text {place} fill="{INK}">{escape(text)}</text>'
