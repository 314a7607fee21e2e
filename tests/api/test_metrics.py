"""What the API answers Prometheus: in one process and in several, with keys and without."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
from pydantic import SecretStr

from farm.ledger.jobs import Jobs
from farm.local.environ import with_values
from farm.settings import Settings
from tests.api.conftest import WEB, Serve, follow, submit
from tests.api.test_serve import api_process, free_port
from tests.conftest import wait_until
from tests.farmhand import Farmhand


def value(text: str, name: str) -> float:
    """The value of a sample on a page; 0 when it is not there."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


LISTED = 'farm_http_requests_total{method="GET",route="/v1/jobs",status="2xx"}'


async def test_requests_streams_and_refusals(serve: Serve, hand: Farmhand, jobs: Jobs) -> None:
    """Answers count under their routes, streams until they end, and what was turned away by its reason."""
    with hand, serve(max_body_bytes=10_000) as api:
        page = lambda: WEB.get(f"{api.url}/metrics").text  # noqa: E731
        assert WEB.post(f"{api.url}/v1/jobs", json={"prompt": "x" * 20_000}).status_code == 413
        assert WEB.get(f"{api.url}/v1/jobs", headers={"Host": "evil.example"}).status_code == 403
        job = submit(jobs, max_tokens=5)
        follow(api.url, job)
        wait_until(lambda: value(page(), "farm_http_streams_open") == 0, why="the stream to be closed")
        hand.tokens_per_beat = 0
        held = submit(jobs, max_tokens=5)
        with WEB.stream("GET", f"{api.url}/v1/jobs/{held}/events") as answer:
            chunks = answer.iter_bytes()
            next(chunks)
            assert value(page(), "farm_http_streams_open") == 1
        assert WEB.get(f"{api.url}/v1/jobs/{held}", params={"wait": 0.1}).status_code == 200
        seen = page()
        assert value(seen, 'farm_http_rejected_total{reason="too_large"}') == 1
        assert value(seen, 'farm_http_rejected_total{reason="auth"}') == 1
        assert value(seen, 'farm_http_rejected_total{reason="quota"}') == 0
        assert value(seen, 'farm_http_request_seconds_count{route="/v1/jobs/{job_id}/events (stream)"}') == 2
        assert value(seen, 'farm_http_request_seconds_count{route="/v1/jobs/{job_id} (wait)"}') == 1
        assert "_created" not in seen


async def test_metrics_want_a_key_that_may_see_all(
    keyed: httpx2.AsyncClient, key: Callable[..., dict[str, str]]
) -> None:
    """They name every tenant: without a key of scope admin there are none."""
    assert (await keyed.get("/metrics")).status_code == 401
    assert (await keyed.get("/metrics", headers=key("ann"))).status_code == 403
    answer = await keyed.get("/metrics", headers=key("ann", scopes=["read", "admin"]))
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert "farm_server_up 1.0" in answer.text


def test_several_processes_are_one(api_settings: Settings, jobs: Jobs, tmp_path: Path) -> None:
    """Whichever of two processes is asked counts for both; what a dead one counted stays, what it held open goes."""
    port = free_port()
    more = {"API__PROCESSES": 2, "TELEMETRY__PORT": port}
    with api_process(api_settings, tmp_path, **more) as api, ThreadPoolExecutor(4) as threads:
        pages = (f"{api.url}/metrics", f"http://127.0.0.1:{port}/metrics")
        children = lambda: [  # noqa: E731
            child for child in psutil.Process(api.process.pid).children() if "spawn_main" in " ".join(child.cmdline())
        ]
        assert len(children()) == 2
        for _ in range(40):
            assert WEB.get(f"{api.url}/v1/jobs").status_code == 200
        for url in pages * 4:
            assert value(WEB.get(url).text, LISTED) == 40
        job = submit(jobs)
        streams = [threads.submit(_hold, f"{api.url}/v1/jobs/{job}/events") for _ in range(4)]
        wait_until(lambda: value(WEB.get(pages[1]).text, "farm_http_streams_open") == 4, why="four open streams")
        dead = [child.pid for child in children()]
        for pid in dead:
            os.kill(pid, signal.SIGKILL)
        for stream in streams:
            stream.result(timeout=30)
        wait_until(lambda: value(WEB.get(pages[1]).text, "farm_http_streams_open") == 0, why="them to be forgotten")
        wait_until(api.answers, why="new processes")
        assert not set(dead) & {child.pid for child in children()}
        for url in pages:
            assert value(WEB.get(url).text, LISTED) == 40
        assert api.stop() == 0
    assert not list(tmp_path.glob("farm-api-*"))


def test_a_port_that_is_taken_fails_no_api(api_settings: Settings, jobs: Jobs, tmp_path: Path) -> None:
    """One line says so, and requests are answered."""
    with api_process(api_settings, tmp_path) as first:
        taken = int(first.url.rpartition(":")[2])
        with api_process(api_settings, tmp_path, TELEMETRY__PORT=taken, LOGS__FORMAT="json") as api:
            assert api.log.count("telemetry_not_served") == 1
            assert "farm_server_up 1.0" in WEB.get(f"{api.url}/metrics").text


def test_a_farm_without_a_server_is_still_scraped(api_settings: Settings, tmp_path: Path) -> None:
    """The API's own counts are there, and farm_server_up is 0."""
    away = with_values(api_settings, redis={"url": SecretStr(f"redis://127.0.0.1:{free_port()}/0")})
    with api_process(away, tmp_path) as api:
        seen = WEB.get(f"{api.url}/metrics").text
        assert value(seen, "farm_server_up") == 0
        assert "farm_queue_depth" not in seen
        assert "farm_http_requests_total" in seen


def _hold(url: str) -> None:
    """Read a stream until it is cut off."""
    try:
        with WEB.stream("GET", url) as answer:
            for _ in answer.iter_bytes():
                pass
    except httpx2.TransportError:
        return
