"""The metrics of the API, beside those of the ledger. Declarations only; ``api.recorder`` counts."""

from __future__ import annotations

from api.errors import BodyTooLarge, FileTooLarge, HostRefused, KeyRefused, ScopeMissing, StreamsFull
from farm.errors import (
    DeadlineUnmeetable,
    ExceedsQuota,
    FarmError,
    QueueFull,
    QuotaExceeded,
    ServerFull,
    TooManyRequests,
)
from farm.metrics import Family

HTTP_REQUESTS = Family(
    "farm_http_requests_total",
    "counter",
    "Answers, by the route's template and the status' class; gone: the client left before there was one.",
    ("method", "route", "status"),
)
HTTP_SECONDS = Family(
    "farm_http_request_seconds",
    "histogram",
    "Time to an answer's first byte. Who waits for a job (wait) and streams (stream) are routes of their own.",
    ("route",),
    "seconds",
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0),
    "A submission's few milliseconds, up to the minute that a client may wait for a job.",
)
STREAMS_OPEN = Family("farm_http_streams_open", "gauge", "Streams of server-sent events that are open.")
REJECTED = Family(
    "farm_http_rejected_total",
    "counter",
    "Requests turned away: auth, rate, quota, queue_full, memory, deadline, too_large or streams.",
    ("reason",),
)

API = (HTTP_REQUESTS, HTTP_SECONDS, STREAMS_OPEN, REJECTED)

# In this order: some are kinds of others.
_REASONS: tuple[tuple[type[FarmError] | tuple[type[FarmError], ...], str], ...] = (
    ((KeyRefused, ScopeMissing, HostRefused), "auth"),
    ((QuotaExceeded, ExceedsQuota), "quota"),
    (TooManyRequests, "rate"),
    (QueueFull, "queue_full"),
    (ServerFull, "memory"),
    (DeadlineUnmeetable, "deadline"),
    ((BodyTooLarge, FileTooLarge), "too_large"),
    (StreamsFull, "streams"),
)
REASONS = tuple(reason for _, reason in _REASONS)


def reason_of(error: FarmError) -> str | None:
    """Why a request was turned away; None for one that was wrong, or met trouble."""
    return next((reason for kinds, reason in _REASONS if isinstance(error, kinds)), None)
