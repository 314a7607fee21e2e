"""What a worker answers Prometheus."""

from __future__ import annotations

import itertools
import re
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from farm.exposition import LedgerCollector
from farm.ledger.jobs import Jobs
from farm.local.server import free_port
from farm.settings import load_settings
from tests.conftest import wait_until
from tests.integration.conftest import StartWorker, submit, wait_for_all

SYNTHETIC = {"ENGINE__SYNTHETIC_STEP_S": 0.004}
TINY_BLOOM = {"ENGINE__KIND": "bloom"}
TOKENS = 400
SOON = {"LEASE__LEASE_S": 2, "KEEPER__LIVENESS_S": 1, "KEEPER__STALL_S": 0.8, "KEEPER__LOCK_S": 0.4}


def scrape(port: int) -> dict[str, float]:
    """Values by name, with the labels' values after it: farm_tokens_total lost."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = itertools.chain.from_iterable(family.samples for family in families)
    return {" ".join([sample.name, *sample.labels.values()]): sample.value for sample in samples}


def kinds(seen: dict[str, float]) -> dict[str, int]:
    """The token account by kind."""
    return {
        name.removeprefix("farm_tokens_total "): int(value)
        for name, value in seen.items()
        if name.startswith("farm_tokens_total ")
    }


def computed(seen: dict[str, float]) -> int:
    return int(seen["farm_engine_tokens_total prefill"] + seen["farm_engine_tokens_total decode"])


def settled(port: int) -> dict[str, float]:
    """A worker's metrics once nothing is under way: useful and wasted tokens are then all that it computed."""

    def is_quiet() -> bool:
        seen = scrape(port)
        return not seen["farm_slots_in_use"] and sum(kinds(seen).values()) == computed(seen)

    wait_until(is_quiet, why="every token to be accounted for", timeout_s=10)
    seen = scrape(port)
    assert sum(kinds(seen).values()) == computed(seen) > 0
    return seen


def test_a_worker_counts_what_its_engine_does(jobs: Jobs, start_worker: StartWorker) -> None:
    """Steps, prompt tokens found in the prefix cache, preemptions and shortages of memory are there to be scraped."""
    port = free_port()
    start_worker("w1", TELEMETRY__PORT=port)
    assert scrape(port)["farm_engine_out_of_memory_total"] == 0
    prompt = "the same words " * 50
    for _ in range(2):
        wait_for_all(jobs, submit(jobs, prompt=prompt, max_tokens=5))
    wait_until(lambda: scrape(port)["farm_cached_prompt_tokens_total"] == 128, why="two blocks of 64 to be found")
    seen = settled(port)
    assert seen["farm_engine_steps_total"] == seen["farm_step_seconds_count"] >= 10
    assert seen["farm_batch_size_count"] == seen["farm_batch_size_bucket 1.0"] == 8, "all but each job's first token"
    assert kinds(seen) == {"prompt": 172, "generated": 10, "resumed": 0, "recomputed": 0, "cancelled": 0, "lost": 0}
    for name in ("farm_ttft_seconds", "farm_queue_time_seconds", "farm_e2e_seconds"):
        assert seen[f"{name}_count"] == 2
    assert 0 < seen["farm_queue_time_seconds_sum"] < seen["farm_ttft_seconds_sum"] <= seen["farm_e2e_seconds_sum"] < 60
    assert seen["farm_preemptions_total"] == 0
    assert seen["farm_worker_up tiny-bloom w1"] == 1


def test_a_metrics_port_that_is_taken_fails_no_worker(jobs: Jobs, start_worker: StartWorker) -> None:
    """The worker says so in one line and works on."""
    port = free_port()
    start_worker("w1", TELEMETRY__PORT=port)
    second = start_worker("w2", TELEMETRY__PORT=port)
    assert second.log.count("telemetry_not_served") == 1
    assert len(wait_for_all(jobs, submit(jobs, 4, max_tokens=3))) == 4


def test_without_a_server_a_scrape_succeeds() -> None:
    """farm_server_up is 0 then, and there is nothing else of the ledger's, rather than old values."""
    collector = LedgerCollector(Jobs(load_settings(redis={"url": f"redis://127.0.0.1:{free_port()}/0"})))
    [family] = collector.collect()
    assert [(sample.name, sample.value) for sample in family.samples] == [("farm_server_up", 0)]


@pytest.mark.parametrize("engine", [SYNTHETIC, TINY_BLOOM], ids=["synthetic", "tiny-bloom"])
def test_the_account_of_a_worker_whose_engine_dies(
    jobs: Jobs, start_worker: StartWorker, engine: dict[str, object]
) -> None:
    """Useful and wasted tokens are all that its engines computed, across a cancellation and an engine's death."""
    port = free_port()
    worker = start_worker("w1", TELEMETRY__PORT=port, ENGINE__MAX_SLOTS=8, **engine)
    ids = submit(jobs, 6, max_tokens=TOKENS, ignore_eos=True)
    wait_until(lambda: scrape(port)["farm_tokens_total generated"] > 60, why="tokens of all")
    jobs.cancel(ids[:2])
    before = scrape(port)
    worker.engine.kill()
    views = wait_for_all(jobs, ids)
    seen = settled(port)
    assert seen["farm_engine_restarts_total"] == 1
    for name, value in before.items():
        if re.search("_(total|bucket|count|sum)( |$)", name):
            assert seen[name] >= value, f"{name} went back when the engine died"
    account = kinds(seen)
    assert account["resumed"] > 0
    assert account["recomputed"] == 0
    kept = sum(view.usage.completion_tokens for view in views)
    assert account["generated"] == kept == seen["farm_ledger_tokens_total completion"]
    assert seen["farm_jobs_total tiny-bloom cancelled"] == 2
    assert seen["farm_jobs_total tiny-bloom succeeded"] == 4


@pytest.mark.parametrize("engine", [SYNTHETIC, TINY_BLOOM], ids=["synthetic", "tiny-bloom"])
def test_the_account_of_a_worker_that_takes_over(
    jobs: Jobs, start_worker: StartWorker, engine: dict[str, object]
) -> None:
    """After kill -9 of a worker its successor's account holds: what it computed again is wasted, the rest useful."""
    first = start_worker("w1", TELEMETRY__PORT=free_port(), **SOON, **engine)
    ids = submit(jobs, 4, max_tokens=TOKENS, ignore_eos=True)
    wait_until(lambda: scrape(int(str(first.port)))["farm_tokens_total generated"] > 60, why="tokens of all")
    first.kill()
    port = free_port()
    start_worker("w2", TELEMETRY__PORT=port, **SOON, **engine)
    views = wait_for_all(jobs, ids)
    seen = settled(port)
    account = kinds(seen)
    resumed = sum(view.usage.resumed_tokens for view in views)
    assert resumed > 60
    assert account["generated"] == len(ids) * TOKENS - resumed
    assert account["resumed"] >= resumed
    assert seen["farm_leases_lost_total"] == 4
    assert seen["farm_releases_total lease_ended"] == 4
    assert seen["farm_workers tiny-bloom model ready"] == 1


def test_the_account_under_a_shortage_of_memory(jobs: Jobs, start_worker: StartWorker) -> None:
    """What is computed again after a preemption is wasted; the account adds up."""
    port = free_port()
    start_worker("w1", TELEMETRY__PORT=port, ENGINE__KV_BYTES=512 * 4096, ENGINE__MAX_CONTEXT=256, **TINY_BLOOM)
    assert scrape(port)["farm_kv_tokens_capacity"] == 512
    wait_for_all(jobs, submit(jobs, 8, max_tokens=200, ignore_eos=True))
    seen = settled(port)
    assert seen["farm_preemptions_total"] > 0
    account = kinds(seen)
    assert account["recomputed"] > 0
    assert (account["generated"], account["cancelled"], account["lost"]) == (8 * 200, 0, 0)
