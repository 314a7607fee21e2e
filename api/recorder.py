"""Counts requests, in this process or for all processes of one ``farm api`` together, and gives Prometheus its page.

Several processes write their counts to files in one folder (``share``), so that whichever is asked answers for all:
counts of a process that died stay, what it held open is gone with it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from api import metrics
from farm.errors import FarmError
from farm.exposition import LedgerCollector
from farm.ledger.jobs import Jobs

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's own name for it; set before it is imported by those who count
METHODS = frozenset(("GET", "POST", "DELETE", "HEAD", "PUT", "PATCH", "OPTIONS"))
NOWHERE = "(none)"
"""The route of what asks for a path that there is not."""


class Recorder:
    """Counts of one app."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # else a series more for each of them, which nothing asks for
        self._registry = CollectorRegistry()
        self._requests = Counter(
            metrics.HTTP_REQUESTS.name.removesuffix("_total"),
            metrics.HTTP_REQUESTS.help,
            metrics.HTTP_REQUESTS.labels,
            registry=self._registry,
        )
        self._seconds = Histogram(
            metrics.HTTP_SECONDS.name,
            metrics.HTTP_SECONDS.help,
            metrics.HTTP_SECONDS.labels,
            buckets=metrics.HTTP_SECONDS.buckets,
            registry=self._registry,
        )
        self._streams = Gauge(
            metrics.STREAMS_OPEN.name, metrics.STREAMS_OPEN.help, multiprocess_mode="livesum", registry=self._registry
        )
        self._rejected = Counter(
            metrics.REJECTED.name.removesuffix("_total"),
            metrics.REJECTED.help,
            metrics.REJECTED.labels,
            registry=self._registry,
        )
        for reason in metrics.REASONS:
            self._rejected.labels(reason)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """An answer has begun. status: 0 when the client left before that."""
        label = f"{status // 100}xx" if status else "gone"
        self._requests.labels(method if method in METHODS else "other", route, label).inc()
        if status:
            self._seconds.labels(route).observe(seconds)

    def rejected(self, error: FarmError) -> None:
        """A request was refused; counted if it was turned away."""
        reason = metrics.reason_of(error)
        if reason is not None:
            self._rejected.labels(reason).inc()

    def stream_opened(self) -> None:
        self._streams.inc()

    def stream_closed(self) -> None:
        self._streams.dec()

    def registry(self, jobs: Jobs) -> CollectorRegistry:
        """What this process exports: its own counts, or those of all that share them."""
        return exported(jobs, self._registry)


def exported(jobs: Jobs, own: Collector | None = None) -> CollectorRegistry:
    """The ledger's metrics and the counts of all processes that share them, or else of ``own``."""
    registry = CollectorRegistry()
    registry.register(LedgerCollector(jobs))
    folder = os.environ.get(FOLDER)
    if folder:
        registry.register(_Shared(folder))
    elif own is not None:
        registry.register(own)
    return registry


def page(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The metrics as text, and its content type. accept: the header, by which the format is chosen."""
    encoder, content_type = choose_encoder(accept)
    return encoder(registry), content_type


@contextlib.contextmanager
def share(processes: int) -> Iterator[None]:
    """Have processes that are started in the block, if they are several, share their counts."""
    if processes == 1:
        os.environ.pop(FOLDER, None)
        yield
        return
    with tempfile.TemporaryDirectory(prefix="farm-api-") as folder:
        os.environ[FOLDER] = folder
        try:
            yield
        finally:
            del os.environ[FOLDER]


class _Shared(Collector):
    """The counts in a folder, without what processes held open that are gone."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._merged = MultiProcessCollector(None, path=folder)  # type: ignore[no-untyped-call]

    def collect(self) -> Iterable[Metric]:
        """One sample of each for all processes."""
        for path in self._folder.glob("gauge_live*.db"):
            if not _is_alive(int(path.stem.rpartition("_")[2])):
                path.unlink(missing_ok=True)
        found: Iterable[Metric] = self._merged.collect()  # type: ignore[no-untyped-call]
        return found


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
