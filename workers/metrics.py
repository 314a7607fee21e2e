"""What a worker tells Prometheus about its engine, read when it is scraped.

Every metric of this package is declared here. Counters start at 0 with each engine process, as Prometheus expects.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from workers.lives import Lives


@dataclass(frozen=True, slots=True)
class _Family:
    """A metric and where its value is found in the engine's last report."""

    name: str
    help: str
    source: str
    is_counter: bool = True


_FAMILIES = (
    _Family("farm_slots_in_use", "Sequences that the engine generates for now.", "running", is_counter=False),
    _Family("farm_kv_tokens_in_use", "Tokens of KV memory that running sequences hold.", "kv_tokens", is_counter=False),
    _Family("farm_engine_steps", "Steps of the engine.", "steps"),
    _Family("farm_preemptions", "Sequences that gave their KV memory back and were computed again.", "preemptions"),
    _Family("farm_engine_out_of_memory", "Steps that found no memory and were tried again smaller.", "out_of_memory"),
    _Family(
        "farm_cached_prompt_tokens",
        "Prompt tokens that were not computed, since another prompt had begun with them.",
        "cached_prompt_tokens",
    ),
)


class EngineCollector(Collector):
    """The engine's last report as metrics."""

    def __init__(self, lives: Lives) -> None:
        self._lives = lives

    def collect(self) -> Iterator[Metric]:
        """One sample per metric; zeros before the first report."""
        report = self._lives.last_report
        for family in _FAMILIES:
            owner = report if hasattr(report, family.source) else report.stats
            value = float(getattr(owner, family.source))
            kind = CounterMetricFamily if family.is_counter else GaugeMetricFamily
            yield kind(family.name, family.help, value=value)
        tokens = CounterMetricFamily("farm_tokens", "Tokens that the engine computed.", labels=["kind"])
        tokens.add_metric(["prefilled"], report.stats.prefilled_tokens)
        tokens.add_metric(["generated"], report.stats.generated_tokens)
        yield tokens
        restarts = self._lives.total_deaths
        yield CounterMetricFamily("farm_engine_restarts", "Engines that died or hung.", value=restarts)
