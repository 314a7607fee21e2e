"""A real farm under a mixed load with failures, watched by a real Prometheus: every expression finds data."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
import yaml

from farm import Farm
from farm.client import Job
from farm.local.server import free_port
from grafana.local import configuration, exporter_environ, read_note
from tests.commands import Up, environ, running
from tests.conftest import tool, wait_until
from tests.monitoring import names
from tests.receiver import Receiver

pytestmark = pytest.mark.alone

STANDS_FOR = {"$__rate_interval": "10s", "$__range": "60s", "$model": ".*", "$instance": ".*", "$tenant": ".*"}
WEB = httpx2.Client(verify=False, limits=httpx2.Limits(max_keepalive_connections=0))
REJECTED = "farm:http_rejected:ratio_rate15m"
SETTINGS = {
    "ENGINE__MAX_SLOTS": 4,
    "ENGINE__SYNTHETIC_STEP_S": 0.01,
    "ENGINE__SYNTHETIC_FAULTS": "mandrake=die@0,hiccup=fail*1",
    "KEEPER__RETRY_BASE_S": 0.1,
    "WEBHOOKS__ALLOW": "127.0.0.0/8",
    "WEBHOOKS__RETRY_BASE_S": 0.2,
}


@dataclass(frozen=True)
class Watch:
    """A Prometheus, and when what is to be seen began."""

    url: str
    began: float

    def ask(self, path: str, **values: str | float) -> Any:
        """What its API answers."""
        answer = WEB.get(f"{self.url}/api/v1/{path}", params=values, timeout=30)
        assert answer.status_code == 200, f"{values}: {answer.text}"
        return answer.json()["data"]

    def series(self, expr: str) -> list[dict[str, str]]:
        """The labels of the series that an expression had at any time since."""
        for name, value in STANDS_FOR.items():
            expr = expr.replace(name, value)
        found = self.ask("query_range", query=expr, start=self.began, end=time.time(), step=1)["result"]
        return [series["metric"] for series in found]

    def last(self, expr: str) -> float | None:
        """The value that an expression has now."""
        found = self.ask("query", query=expr)["result"]
        return float(found[0]["value"][1]) if found else None


@contextlib.contextmanager
def _process(log: Path, *command: object, **environment: str) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*map(str, command)], env={**os.environ, **environment}, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    tool("prometheus", "prometheus")
    tool("prometheus-redis-exporter", "prometheus-redis-exporter")
    ports = {"API__PORT": free_port(), "FLOWER__PORT": free_port()}
    with running(tmp_path_factory.mktemp("farm"), "--workers", 2, **SETTINGS, **ports) as farm_up:
        yield farm_up


@pytest.fixture(scope="module")
def watch(up: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    """Prometheus with the repository's configuration and rules, asking each second, after the load."""
    folder, note = tmp_path_factory.mktemp("prometheus"), read_note(up.state_dir)
    port, exporter = free_port(), f"127.0.0.1:{free_port()}"
    config = yaml.safe_load(configuration(note, exporter=exporter))
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    del config["alerting"]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    redis_exporter = (tool("prometheus-redis-exporter", "prometheus-redis-exporter"), "-web.listen-address", exporter)
    prometheus = (
        tool("prometheus", "prometheus"),
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    with (
        _process(folder / "exporter.log", *redis_exporter, **exporter_environ(note)),
        _process(folder / "prometheus.log", *prometheus),
    ):
        seen = Watch(f"http://127.0.0.1:{port}", time.time())
        wait_until(lambda: _is_up(seen.url), why="Prometheus")
        wait_until(lambda: _all_up(seen), why="all targets to be scraped")
        _load(up, seen)
        recorded, ended = "timestamp(farm:dead_jobs)", time.time()
        wait_until(lambda: (seen.last(recorded) or 0) > ended + 3, why="what came last to be scraped and recorded")
        yield seen


def _is_up(url: str) -> bool:
    try:
        return WEB.get(f"{url}/-/ready", timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


def _all_up(watch: Watch) -> bool:
    targets = watch.ask("targets")["activeTargets"]
    return len(targets) >= 6 and all(target["health"] == "up" for target in targets)


def _call(url: str, body: dict[str, Any] | None = None, **headers: str) -> int:
    """Ask the API, and return its status; 0 if it did not answer."""
    try:
        return WEB.request("POST" if body else "GET", url, json=body, headers=headers, timeout=10).status_code
    except httpx2.TransportError:
        return 0


def _load(up: Up, watch: Watch) -> None:
    """Jobs of two tenants and three priorities, of which some end badly, while parts of the farm die."""
    with redis.Redis.from_url(up.url) as server:
        server.config_set("maxmemory", "1gb")
    api = json.loads((up.state_dir / "farm.json").read_text())["api_url"]
    with Receiver(500, 204) as receiver, Farm(url=up.url) as ann, Farm(url=up.url, tenant="bob") as bob:
        jobs = [
            client.submit(f"The same words begin each of these prompts. {i}", max_tokens=150, priority=priority)
            for i in range(12)
            for client, priority in ((ann, "high"), (ann, "normal"), (bob, "low"))
        ]
        jobs += [ann.submit("a hiccup", max_tokens=4, webhook_url=receiver.url)]
        jobs += [ann.submit("too late", max_tokens=8, deadline_s=0.5, priority="low"), bob.submit("a mandrake")]
        jobs[20].cancel()
        _kill_a_worker(up)
        _ask_the_api(api)
        # A rate is seen in what goes on: the first time is none.
        wait_until(lambda: _ask_the_api(api) and watch.series(REJECTED), why="requests that are turned away to be seen")
        _wait_for(jobs)
        wait_until(lambda: len(receiver.got) >= 2, why="the webhook's second try")
        _freeze_the_server(up, api)


def _ask_the_api(api: str) -> bool:
    """Requests of every kind, one of which has no good key."""
    assert _call(f"{api}/v1/jobs", {"prompt": "By the API", "max_tokens": 4}, Prefer="wait=10") in (200, 202)
    assert _call(f"{api}/v1/completions", {"model": "tiny-bloom", "prompt": "A", "max_tokens": 4}) == 200
    assert _call(f"{api}/v1/completions", {"model": "tiny-bloom", "prompt": "A", "stream": True}) == 200
    assert _call(f"{api}/v1/models", Authorization="Bearer bf_nobody") == 401
    return True


def _kill_a_worker(up: Up) -> None:
    [worker, *_] = [child for child in up.family() if child.environ().get("FARM_WORKER__NAME") == "local-1"]
    os.killpg(worker.pid, signal.SIGKILL)


def _freeze_the_server(up: Up, api: str) -> None:
    """Nobody reaches the server for a moment, and the API says so."""
    [server] = [child for child in up.family() if re.search("redis|valkey", child.name())]
    server.suspend()
    thaw = threading.Timer(6, server.resume)
    thaw.start()
    try:
        wait_until(lambda: _call(f"{api}/v1/jobs", {"prompt": "Now", "max_tokens": 1}) == 503, why="a 503")
    finally:
        thaw.join()
    wait_until(lambda: _call(f"{api}/readyz") == 200, why="the API to be ready again")


def _wait_for(jobs: list[Job]) -> None:
    wait_until(lambda: all(job.status().state.is_terminal for job in jobs), why="all jobs to end", timeout_s=60)
    ended = {str(job.status().state) for job in jobs}
    assert ended == {"succeeded", "cancelled", "expired", "dead"}


def test_every_panel_and_every_rule_finds_data(watch: Watch) -> None:
    """Each expression of a dashboard, each record, and each series that an alert looks at has data; GPUs' with NVML."""
    has_gpus = bool(watch.series("farm_gpu_memory_total_bytes"))
    blind = [
        f"{asked.where}: {asked.expr}"
        for asked in names.drawn()
        if (has_gpus or "farm_gpu_" not in asked.expr) and not watch.series(asked.expr)
    ]
    blind += [name for name in names.records() if not watch.series(name)]
    for asked in names.ruled():
        # What an alert wants not to be there must at least be told.
        selectors = {re.sub(r'!="[^"]*"', '!=""', selector) for selector in asked.selectors}
        blind += [f"{asked.where}: {selector}" for selector in selectors if not watch.series(selector)]
    assert not blind, "\n".join(blind)
    assert not watch.series("sum(max by (model) (farm_queue_deepth))"), "a name that nobody exports has data"
    groups = watch.ask("rules")["groups"]
    assert {
        (rule["name"], rule["health"]) for group in groups for rule in group["rules"] if rule["health"] != "ok"
    } == set()
    assert sum(len(group["rules"]) for group in groups) == len(names.rules())


def test_the_numbers_are_those_of_the_load(watch: Watch) -> None:
    """What was done to the farm is what the records tell of it."""
    assert watch.last("farm:server_up") == 1
    assert watch.series("farm:server_up == 0"), "the server was away"
    assert watch.last("farm:dead_jobs") == 1
    assert watch.last('sum(max by (state) (farm_jobs_total{state=~"dead|expired|cancelled"}))') == 3
    assert watch.last("max(farm_jobs_submitted_total)") == watch.last("sum(max by (state) (farm_jobs_total))")
    assert (watch.last("sum(max_over_time(farm_engine_restarts_total[5m]))") or 0) >= 3
    assert (watch.last("sum(max_over_time(farm_http_requests_total{status='5xx'}[5m]))") or 0) >= 1
    assert (watch.last("max(farm_retries_total)") or 0) >= 1
    waiting = watch.series("farm:tenant_waiting_jobs > 0")
    assert {series["tenant"] for series in waiting} >= {"default", "bob"}
    assert watch.series('ALERTS{alertname="FarmJobsDead"}')
    firing = {series["alertname"] for series in watch.series('ALERTS{alertstate="firing"}')}
    assert not firing, "half a minute of trouble is no alert"


def test_watching_a_farm_takes_one_command(up: Up) -> None:
    """python -m grafana.local writes what four commands need, readable by nobody else; without a farm it says so."""
    command = [sys.executable, "-m", "grafana.local"]
    said = subprocess.run([*command, str(up.state_dir)], capture_output=True, text=True, check=True, env=environ())
    folder = up.state_dir / "monitoring"
    assert len(said.stdout.splitlines()) == 4
    password = exporter_environ(read_note(up.state_dir))["REDIS_PASSWORD"]
    assert password not in said.stdout
    assert password in (folder / "redis-exporter.env").read_text()
    assert (folder / "redis-exporter.env").stat().st_mode & 0o077 == 0
    promtool = tool("promtool", "prometheus")
    subprocess.run([promtool, "check", "config", folder / "prometheus.yml"], check=True, capture_output=True)
    nowhere = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False, env=environ())
    assert nowhere.returncode == 1
    assert "no farm runs in" in nowhere.stderr
