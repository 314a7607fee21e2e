"""What a metric is, and those that tell of the ledger. Each exporter has the latter, with the same values.

``workers.metrics`` and ``api.metrics`` declare their own. Declarations only: no library, no server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["", "seconds", "bytes", "tokens", "jobs", "ratio"]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. ``name`` is what Prometheus stores (of a histogram, without _bucket, _sum and _count).

    buckets: upper bounds, ascending, without the infinite one; ``reason`` says why these.
    """

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    unit: Unit = ""
    buckets: tuple[float, ...] = ()
    reason: str = ""


SERVER_UP = Family("farm_server_up", "gauge", "1 while the ledger's server answers, else 0.")
QUEUE_DEPTH = Family(
    "farm_queue_depth",
    "gauge",
    "Jobs that wait for their turn: queued, delayed or dispatched.",
    ("model", "priority"),
    "jobs",
)
QUEUE_OLDEST_AGE = Family(
    "farm_queue_oldest_age_seconds",
    "gauge",
    "How long ago the oldest waiting job was submitted, 0 if none waits. Exact up to 256 tenants a priority.",
    ("model", "priority"),
    "seconds",
)
QUEUE_ETA = Family(
    "farm_queue_eta_seconds",
    "gauge",
    "Estimated time until no job waits, by the pace of late; absent if jobs wait and nobody works or few ended.",
    ("model",),
    "seconds",
)
JOBS_IN_STATE = Family(
    "farm_jobs_in_state", "gauge", "Jobs queued, dispatched and running.", ("model", "state"), "jobs"
)
DEAD_JOBS = Family("farm_dead_jobs", "gauge", "Dead jobs that are kept, for farm dead.", (), "jobs")
WORKERS = Family(
    "farm_workers", "gauge", "Workers by state: ready, draining, trouble or silent.", ("model", "role", "state")
)
SLOTS_CAPACITY = Family(
    "farm_slots_capacity", "gauge", "Slots of live workers that do not drain: jobs that can run at once.", ("model",)
)
JOBS_SUBMITTED = Family("farm_jobs_submitted_total", "counter", "Jobs that were accepted.", ("model",), "jobs")
JOBS = Family(
    "farm_jobs_total",
    "counter",
    "Jobs that ended: succeeded, failed, cancelled, expired or dead.",
    ("model", "state"),
    "jobs",
)
RELEASES = Family("farm_releases_total", "counter", "Running jobs put back into the queue.", ("reason",), "jobs")
LEASES_LOST = Family(
    "farm_leases_lost_total", "counter", "Leases that ended because nobody renewed them: a worker died.", (), "jobs"
)
RETRIES = Family(
    "farm_retries_total", "counter", "Jobs put back with a wait, after an error worth another attempt.", (), "jobs"
)
REPUBLISHED = Family(
    "farm_messages_republished_total", "counter", "Messages sent again because nobody had claimed their jobs in time."
)
DELIVERIES_DROPPED = Family(
    "farm_deliveries_dropped_total",
    "counter",
    "Messages that were of no use: their job had ended, was dispatched anew or claimed (stale), is unknown, or of a "
    "newer schema.",
    ("reason",),
)
LEDGER_TOKENS = Family(
    "farm_ledger_tokens_total",
    "counter",
    "Tokens of ended jobs: prompt, completion, and resumed (of the completion: kept from earlier attempts).",
    ("kind",),
    "tokens",
)
TENANT_WAITING = Family(
    "farm_tenant_waiting_jobs",
    "gauge",
    "Waiting jobs of the 50 tenants with most of them, the others' as (other); all as (other) if over 2,000 wait.",
    ("tenant",),
    "jobs",
)
TENANT_TOKENS = Family(
    "farm_tenant_tokens_today",
    "gauge",
    "Prompt and completion tokens of jobs that ended on this UTC day: the 50 largest tenants, the others' as (other).",
    ("tenant",),
    "tokens",
)
REDIS_MEMORY = Family("farm_redis_memory_bytes", "gauge", "Memory that the ledger's server uses.", (), "bytes")
REDIS_MEMORY_LIMIT = Family(
    "farm_redis_memory_limit_bytes", "gauge", "What it may use (maxmemory); 0: no limit.", (), "bytes"
)
WEBHOOKS_WAITING = Family("farm_webhooks_waiting", "gauge", "Webhooks that are still to be called.")
BATCHES = Family("farm_batches", "gauge", "Batches that have not ended, by status.", ("status",))
BATCHES_ENDED = Family("farm_batches_ended_total", "counter", "Batches that ended, by status.", ("status",))

LEDGER = (
    SERVER_UP,
    QUEUE_DEPTH,
    QUEUE_OLDEST_AGE,
    QUEUE_ETA,
    JOBS_IN_STATE,
    DEAD_JOBS,
    WORKERS,
    SLOTS_CAPACITY,
    JOBS_SUBMITTED,
    JOBS,
    RELEASES,
    LEASES_LOST,
    RETRIES,
    REPUBLISHED,
    DELIVERIES_DROPPED,
    LEDGER_TOKENS,
    TENANT_WAITING,
    TENANT_TOKENS,
    REDIS_MEMORY,
    REDIS_MEMORY_LIMIT,
    WEBHOOKS_WAITING,
    BATCHES,
    BATCHES_ENDED,
)
