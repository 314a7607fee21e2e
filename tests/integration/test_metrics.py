"""What a worker answers Prometheus."""

from __future__ import annotations

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from farm.ledger.jobs import Jobs
from farm.local.server import free_port
from tests.conftest import wait_until
from tests.integration.conftest import StartWorker, submit, wait_for_all


def scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {sample.name: sample.value for family in families for sample in family.samples}


def test_a_worker_counts_what_its_engine_does(jobs: Jobs, start_worker: StartWorker) -> None:
    """Steps, prompt tokens found in the prefix cache, preemptions and shortages of memory are there to be scraped."""
    port = free_port()
    start_worker("w1", TELEMETRY__PORT=port)
    assert scrape(port)["farm_engine_out_of_memory_total"] == 0
    prompt = "the same words " * 50
    for _ in range(2):
        wait_for_all(jobs, submit(jobs, prompt=prompt, max_tokens=5))
    wait_until(lambda: scrape(port)["farm_cached_prompt_tokens_total"] == 128, why="two blocks of 64 to be found")
    seen = scrape(port)
    assert seen["farm_engine_steps_total"] >= 10
    wait_until(lambda: scrape(port)["farm_slots_in_use"] == 0, why="the engine to report that it is idle")
    assert seen["farm_preemptions_total"] == 0
    assert "farm_kv_tokens_in_use" in seen


def test_a_metrics_port_that_is_taken_fails_no_worker(jobs: Jobs, start_worker: StartWorker) -> None:
    """The worker says so in one line and works on."""
    port = free_port()
    start_worker("w1", TELEMETRY__PORT=port)
    second = start_worker("w2", TELEMETRY__PORT=port)
    assert "telemetry_not_served" in second.log
    assert len(wait_for_all(jobs, submit(jobs, 4, max_tokens=3))) == 4
