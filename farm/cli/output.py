"""How commands speak: answers on stdout, all else on stderr; colours for a terminal, plain text for a pipe."""

from __future__ import annotations

import json
import re
import sys
import time
from typing import Any

from rich.console import Console
from rich.table import Table

PIPE_WIDTH = 200  # a pipe has no width: wide enough that no cell is cut
# What could move a terminal's cursor or change its title; a model may generate it.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def stdout() -> Console:
    """Where answers go."""
    return _console(sys.stdout.isatty(), stderr=False)


def stderr() -> Console:
    """Where progress, notes and errors go."""
    return _console(sys.stderr.isatty(), stderr=True)


def emit(document: Any) -> None:
    """Write one JSON document on one line, at once."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Say something in passing, on stderr."""
    stderr().print(text, style="dim", markup=False)


def printable(text: str) -> str:
    """A model's text, fit for where stdout goes: a pipe gets it as it is, a terminal without control characters."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text) if sys.stdout.isatty() else text


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A table with room between the columns and no lines; the columns in ``right`` hold numbers."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left")
    return made


def duration(seconds: float | None) -> str:
    """Seconds as people say them: ``0.8 s``, ``42 s``, ``3 min 20 s``, ``5 h 2 min``, ``3 d 4 h``."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, smaller, below in ((86400, "d", "h", 3600), (3600, "h", "min", 60), (60, "min", "s", 1)):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def clock(unix_s: float | None) -> str:
    """A moment as the local time of day, with the date unless it is today's."""
    if unix_s is None:
        return "-"
    moment, today = time.localtime(unix_s), time.localtime()
    return time.strftime("%H:%M:%S" if moment[:3] == today[:3] else "%Y-%m-%d %H:%M:%S", moment)


def _console(is_terminal: bool, *, stderr: bool) -> Console:
    return Console(stderr=stderr, highlight=False, width=None if is_terminal else PIPE_WIDTH)
