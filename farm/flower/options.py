"""Flower's options: what the farm sets, what people may set by FLOWER_…, and what is not theirs to set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from farm.flower import has_password
from farm.settings import FlowerSettings

# The order in which they stand on the page of tasks; what fits 1,280 pixels.
COLUMNS = {
    "uuid": "Job",
    "state": "State",
    "model": "Model",
    "priority": "Priority",
    "tokens": "Tokens",
    "queued_s": "Queued (s)",
    "runtime": "Run time",
    "worker": "Worker",
    "received": "Received",
}
OPEN_API = "FLOWER_UNAUTHENTICATED_API"


def defaults() -> dict[str, Any]:
    """What people may change by FLOWER_…."""
    return {
        "tasks_columns": ",".join(COLUMNS),
        # "2 minutes ago": a date and milliseconds would push a column off the page.
        "natural_time": True,
        # A restarted worker has another name; the one that is gone need not stay on the page.
        "purge_offline_workers": 60,
        # Generating takes seconds: Prometheus' own buckets end at 10.
        "task_runtime_metric_buckets": [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0],
    }


def enforced(settings: FlowerSettings, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What the farm's settings decide.

    Without a password Flower's API refuses every change, so the pages need not offer any.
    """
    is_open = has_password(environ) or bool(environ.get(OPEN_API))
    return {
        "address": settings.host,
        "port": settings.port,
        "max_tasks": settings.max_tasks,
        "max_workers": settings.max_workers,
        "read_only": settings.read_only or not is_open,
        "debug": False,
        "format_task": None,
        "unix_socket": "",
    }
