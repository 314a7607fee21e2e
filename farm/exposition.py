"""Metrics as Prometheus reads them: families and their samples, and those of the ledger, read when it asks.

Needs prometheus_client, which the extras bring along; nothing that every client imports may import this.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from farm import metrics
from farm.contracts import PRIORITIES
from farm.errors import FarmError
from farm.ledger.gauges import Gauges, ModelGauges, read_gauges
from farm.ledger.jobs import Jobs
from farm.logs import log_defect
from farm.metrics import Family
from farm.time_limit import time_limit

log = structlog.get_logger(__name__)

SHARED_S = 1.0  # several scrapers ask the server once
PATIENCE_S = 1.0  # a scrape is over within a few seconds, whether the server answers or not
WORKER_STATES = ("ready", "draining", "trouble", "silent")
JOB_ENDS = ("succeeded", "failed", "cancelled", "expired", "dead")
OPEN_BATCHES = ("validating", "in_progress", "finalizing", "cancelling")
ENDED_BATCHES = ("completed", "failed", "cancelled", "expired")
DROPS = ("ended", "stale", "unknown", "newer")
TOKENS = ("prompt", "completion", "resumed")

K = TypeVar("K", bound=tuple[str, ...])


def values(family: Family, samples: Mapping[K, float]) -> Metric:
    """A gauge or counter. samples: its values by those of its labels."""
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.help, labels=family.labels)
    for labels, value in samples.items():
        metric.add_metric(labels, value)
    return metric


def value(family: Family, sample: float) -> Metric:
    """One without labels."""
    return values(family, {(): sample})


def histogram(family: Family, counts: Iterable[int], total: float) -> Metric:
    """A histogram without labels. counts: how many fell in each bucket, those beyond the last one at the end."""
    metric = HistogramMetricFamily(family.name, family.help)
    so_far, buckets = 0, []
    for bound, count in zip((*family.buckets, float("inf")), counts, strict=True):
        so_far += count
        buckets.append(("+Inf" if bound == float("inf") else repr(float(bound)), so_far))
    metric.add_metric([], buckets, total)
    return metric


class LedgerCollector(Collector):
    """The ledger's metrics. A server that does not answer fails no scrape: farm_server_up is 0, and all else absent."""

    def __init__(self, jobs: Jobs, clock: Callable[[], float] = time.monotonic) -> None:
        self._jobs = jobs
        self._clock = clock
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._seen: Gauges | None = None

    def collect(self) -> Iterator[Metric]:
        """All of them, at most ``SHARED_S`` old."""
        seen = self._look()
        yield value(metrics.SERVER_UP, seen is not None)
        if seen is not None:
            yield from _of_models(seen)
            yield from _of_jobs(seen)
            yield from _of_the_rest(seen)

    def _look(self) -> Gauges | None:
        with self._lock:
            if self._clock() - self._read_at >= SHARED_S:
                self._seen = self._read()
                self._read_at = self._clock()
            return self._seen

    def _read(self) -> Gauges | None:
        try:
            with time_limit(PATIENCE_S):
                return read_gauges(self._jobs)
        except FarmError as error:
            log.debug("metrics_without_server", error=str(error))
        except Exception as error:
            log_defect(log, "metrics_failed", error)
        return None


def _of_models(seen: Gauges) -> Iterator[Metric]:
    models = seen.models

    def by_priority(pick: Callable[[ModelGauges], Mapping[str, float]]) -> dict[tuple[str, str], float]:
        return {(model.name, level): pick(model)[level] for model in models for level in PRIORITIES}

    yield values(metrics.QUEUE_DEPTH, by_priority(lambda model: model.depth))
    yield values(metrics.QUEUE_OLDEST_AGE, by_priority(lambda model: model.age_s))
    yield values(metrics.QUEUE_ETA, {(model.name,): model.eta_s for model in models if model.eta_s is not None})
    states = {(model.name, state): count for model in models for state, count in model.in_state.items()}
    yield values(metrics.JOBS_IN_STATE, states)
    yield values(metrics.SLOTS_CAPACITY, {(model.name,): model.slots for model in models})
    kinds = {(model.name, "model") for model in models} | {("", "system")} | {kind[:2] for kind in seen.workers}
    workers = {(*kind, state): seen.workers.get((*kind, state), 0) for kind in sorted(kinds) for state in WORKER_STATES}
    yield values(metrics.WORKERS, workers)


def _of_jobs(seen: Gauges) -> Iterator[Metric]:
    names = [model.name for model in seen.models]
    count = seen.tally.get
    yield values(metrics.JOBS_SUBMITTED, {(name,): count(f"submitted:{name}", 0) for name in names})
    ends = {(name, state): count(f"{state}:{name}", 0) for name in names for state in JOB_ENDS}
    yield values(metrics.JOBS, ends)
    tokens = {(kind,): sum(count(f"{kind}:{name}", 0) for name in names) for kind in TOKENS}
    yield values(metrics.LEDGER_TOKENS, tokens)
    yield value(metrics.DEAD_JOBS, seen.dead)
    yield values(metrics.RELEASES, _named(seen.totals, "released:"))
    yield value(metrics.LEASES_LOST, seen.totals.get("leases_lost", 0))
    yield value(metrics.RETRIES, seen.totals.get("retried", 0))
    yield value(metrics.REPUBLISHED, seen.totals.get("republished", 0))
    yield values(metrics.DELIVERIES_DROPPED, _named(seen.totals, "dropped:", DROPS))


def _of_the_rest(seen: Gauges) -> Iterator[Metric]:
    yield values(metrics.TENANT_WAITING, {(tenant,): jobs for tenant, jobs in seen.waiting_jobs.items()})
    yield values(metrics.TENANT_TOKENS, {(tenant,): tokens for tenant, tokens in seen.tokens_today.items()})
    if seen.memory_bytes is not None and seen.memory_limit_bytes is not None:
        yield value(metrics.REDIS_MEMORY, seen.memory_bytes)
        yield value(metrics.REDIS_MEMORY_LIMIT, seen.memory_limit_bytes)
    yield value(metrics.WEBHOOKS_WAITING, seen.webhooks_waiting)
    yield values(metrics.BATCHES, {(status,): seen.batches.get(status, 0) for status in OPEN_BATCHES})
    yield values(metrics.BATCHES_ENDED, _named(seen.totals, "batches:", ENDED_BATCHES))


def _named(totals: Mapping[str, int], prefix: str, always: Iterable[str] = ()) -> dict[tuple[str], int]:
    """The totals whose names begin so, by what follows; some even when they are 0."""
    found = {(name.removeprefix(prefix),): count for name, count in totals.items() if name.startswith(prefix)}
    return {**{(name,): 0 for name in always}, **found}
