"""Words for a farm that all commands share: how jobs ended, what was put back, the states of workers."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text

from farm.cli.output import duration
from farm.ledger.overview import WorkerView

ENDS = {"succeeded": "green", "failed": "red", "dead": "red", "expired": "yellow", "cancelled": "yellow"}
"""How jobs end, each in its colour."""


def ended(totals: Mapping[str, int]) -> str:
    """How many jobs ended in which way."""
    return ", ".join(f"{totals[name]:,} {name}" for name in ENDS if totals.get(name)) or "none"


def put_back(released: Mapping[str, int]) -> str:
    """How often jobs were queued again after an attempt, by reason."""
    return ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in released.items()) or "none"


def worker_state(worker: WorkerView) -> Text:
    """Whether a worker takes jobs, and if not, why."""
    if not worker.is_alive:
        return Text(f"silent {duration(worker.silent_s)}", style="red")
    if worker.is_draining:
        return Text("draining", style="yellow")
    if worker.trouble:
        return Text(worker.trouble, style="red" if "failing" in worker.trouble else "yellow")
    return Text("ready", style="green")
