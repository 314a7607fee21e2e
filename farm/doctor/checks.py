"""What a check says, and all of them in the order in which people mend things."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. ``remedy`` is what to do, empty when all is well."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


def worst(checks: list[Check]) -> Verdict:
    """The verdict over all."""
    verdicts = {check.verdict for check in checks}
    return "fail" if "fail" in verdicts else "warn" if "warn" in verdicts else "ok"


def size(count: int) -> str:
    """Bytes as people say them, in powers of ten: ``14.1 GB``."""
    value, units = float(count), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 999.5 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.1f} {unit}"
