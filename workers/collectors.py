"""A worker's own metrics, read when it is scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from farm.exposition import histogram, value, values
from farm.settings import Settings
from workers import metrics
from workers.gpus import Gpus
from workers.runner import Runner

OUTCOMES = ("ok", "failed", "gone", "refused")


class UpCollector(Collector):
    """Whether the worker takes jobs."""

    def __init__(self, name: str, model: str, why_unready: Callable[[], str]) -> None:
        """model: '' for a worker without an engine."""
        self._labels = (name, model)
        self._why_unready = why_unready

    def collect(self) -> Iterator[Metric]:
        """One sample."""
        yield values(metrics.WORKER_UP, {self._labels: not self._why_unready()})


class EngineCollector(Collector):
    """What a worker's engines do and did, and what became of it."""

    def __init__(self, settings: Settings, runner: Runner) -> None:
        self._settings = settings
        self._runner = runner

    def collect(self) -> Iterator[Metric]:
        """One sample per metric; zeros before the first engine."""
        lives = self._runner.lives
        report, books = lives.last_report, lives.account.read()
        yield from self._of_model()
        yield value(metrics.SLOTS_IN_USE, report.running)
        yield value(metrics.KV_IN_USE, report.stats.kv_tokens)
        yield histogram(metrics.BATCH_SIZE, *books.batch_sizes)
        yield histogram(metrics.STEP, *books.step_seconds)
        yield histogram(metrics.TTFT, *books.ttft)
        yield histogram(metrics.TPOT, *books.time_per_output_token)
        yield histogram(metrics.QUEUE_TIME, *books.queue)
        yield histogram(metrics.E2E, *books.e2e)
        yield values(metrics.TOKENS, {(kind,): count for kind, count in books.tokens.items()})
        yield values(metrics.ENGINE_TOKENS, {(phase,): count for phase, count in books.computed.items()})
        yield value(metrics.CACHED, books.cached_prompt_tokens)
        yield value(metrics.PREEMPTIONS, books.preemptions)
        yield value(metrics.OUT_OF_MEMORY, books.out_of_memory)
        yield value(metrics.STEPS, books.steps)
        yield value(metrics.RESTARTS, lives.total_deaths)

    def _of_model(self) -> Iterator[Metric]:
        model, ready = self._settings.model, self._runner.ready
        if ready is not None:
            labels = (model.name, model.revision or "", ready.dtype, ready.fingerprint, ready.kernels)
            yield values(metrics.MODEL_INFO, {labels: 1})
        yield value(metrics.MODEL_LOAD, ready.load_s if ready else 0)
        yield value(metrics.SLOTS, ready.slots if ready else 0)
        yield value(metrics.KV_CAPACITY, ready.kv_tokens if ready else 0)


class GpuCollector(Collector):
    """The GPUs, if any."""

    def __init__(self, gpus: Gpus) -> None:
        self._gpus = gpus

    def collect(self) -> Iterator[Metric]:
        """A sample a GPU; no family without one."""
        found = self._gpus.read()
        if found:
            yield values(metrics.GPU_MEMORY_USED, {(gpu.name,): gpu.used_bytes for gpu in found})
            yield values(metrics.GPU_MEMORY_TOTAL, {(gpu.name,): gpu.total_bytes for gpu in found})
            busy = {(gpu.name,): gpu.utilisation for gpu in found if gpu.utilisation is not None}
            yield values(metrics.GPU_UTILISATION, busy)


class WebhookCollector(Collector):
    """How calls of webhooks went."""

    def __init__(self, outcomes: Mapping[str, int]) -> None:
        self._outcomes = outcomes

    def collect(self) -> Iterator[Metric]:
        """A sample an outcome."""
        yield values(metrics.WEBHOOK_DELIVERIES, {(name,): self._outcomes.get(name, 0) for name in OUTCOMES})
