"""The day as a picture in SVG: workers over time under each policy, and what waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT = 860, 190, 56, 170
GAP = 46
INK = "#7a7a7a"
COLORS = ("#2f7d4f", "#3f6fb5", "#b5793f", "#8a94a0")
History = Sequence[tuple[float, int, int]]


def svg(histories: Mapping[str, History], until_s: float) -> str:
    """Two panels of one day: workers, and jobs that wait."""
    shown = {name: [point for point in history if point[0] <= until_s] for name, history in histories.items()}
    height = 2 * (HEIGHT + GAP) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="13">'
    ]
    parts += _panel("workers, starting ones included", 1, shown, GAP // 2, until_s)
    parts += _panel("jobs that wait", 2, shown, GAP // 2 + HEIGHT + GAP, until_s)
    return "\n".join([*parts, "</svg>", ""])


def _panel(title: str, column: int, shown: Mapping[str, History], top: int, until_s: float) -> list[str]:
    most = max(1, *(point[column] for history in shown.values() for point in history))
    right = WIDTH - RIGHT
    parts = [_text(LEFT, top - 8, title, weight="bold")]
    for share in (0, 0.5, 1):
        y = top + HEIGHT * (1 - share)
        parts += [
            f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{INK}" stroke-opacity="0.3"/>',
            _text(LEFT - 8, y + 4, f"{most * share:,.0f}", anchor="end"),
        ]
    for hour in range(0, 25, 6):
        x = LEFT + (right - LEFT) * hour * 3600 / until_s
        parts.append(_text(x, top + HEIGHT + 16, f"{hour}:00", anchor="middle"))
    for number, (name, history) in enumerate(shown.items()):
        color = COLORS[number % len(COLORS)]
        points = " ".join(
            f"{LEFT + (right - LEFT) * point[0] / until_s:.1f},{top + HEIGHT * (1 - point[column] / most):.1f}"
            for point in history[::3]
        )
        parts += [
            f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.6"/>',
            f'<rect x="{right + 14}" y="{top + 20 * number}" width="12" height="12" fill="{color}"/>',
            _text(right + 32, top + 20 * number + 11, name),
        ]
    return parts


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text {place} fill="{INK}">{escape(text)}</text>'
