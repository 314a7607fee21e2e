"""Bloomfarm: large language models over a durable queue.

    from farm import Farm

Importing this is light: each name is loaded when it is first used (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from farm.aio import AsyncFarm
    from farm.aio_job import AsyncJob
    from farm.client import Farm
    from farm.contracts import JobState, Request
    from farm.errors import (
        DeadlineUnmeetable,
        ExceedsQuota,
        FarmError,
        IdempotencyConflict,
        InvalidRequest,
        JobCancelled,
        JobDead,
        JobExpired,
        JobFailed,
        JobGone,
        JobNotDead,
        JobNotFound,
        JobNotSucceeded,
        PromptTooLong,
        QueueFull,
        QuotaExceeded,
        ServerFull,
        ServerUnreachable,
        TooManyRequests,
    )
    from farm.job import Job
    from farm.ledger.usage import UsageDay
    from farm.results import Completion, Delta, JobView
    from farm.settings import Settings, load_settings

__version__ = "0.1.0"

_HOMES = {
    "farm.aio": ("AsyncFarm",),
    "farm.aio_job": ("AsyncJob",),
    "farm.client": ("Farm",),
    "farm.job": ("Job",),
    "farm.contracts": ("JobState", "Request"),
    "farm.results": ("Completion", "Delta", "JobView"),
    "farm.errors": (
        "DeadlineUnmeetable",
        "ExceedsQuota",
        "FarmError",
        "IdempotencyConflict",
        "InvalidRequest",
        "JobCancelled",
        "JobDead",
        "JobExpired",
        "JobFailed",
        "JobGone",
        "JobNotDead",
        "JobNotFound",
        "JobNotSucceeded",
        "PromptTooLong",
        "QueueFull",
        "QuotaExceeded",
        "ServerFull",
        "ServerUnreachable",
        "TooManyRequests",
    ),
    "farm.ledger.usage": ("UsageDay",),
    "farm.settings": ("Settings", "load_settings"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AsyncFarm",
    "AsyncJob",
    "Completion",
    "DeadlineUnmeetable",
    "Delta",
    "ExceedsQuota",
    "Farm",
    "FarmError",
    "IdempotencyConflict",
    "InvalidRequest",
    "Job",
    "JobCancelled",
    "JobDead",
    "JobExpired",
    "JobFailed",
    "JobGone",
    "JobNotDead",
    "JobNotFound",
    "JobNotSucceeded",
    "JobState",
    "JobView",
    "PromptTooLong",
    "QueueFull",
    "QuotaExceeded",
    "Request",
    "ServerFull",
    "ServerUnreachable",
    "Settings",
    "TooManyRequests",
    "UsageDay",
    "load_settings",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'farm' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
