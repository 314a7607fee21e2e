"""A whole farm as Prometheus and its logs show it."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from api.metrics import API
from farm import Farm
from farm.metrics import LEDGER, Family
from farm.settings import load_settings
from tests.commands import Up, running
from tests.conftest import wait_until
from workers.metrics import MODEL, SYSTEM

CANARY = "Xyzzyplugh"
BROKEN = {
    "ENGINE__SYNTHETIC_FAULTS": "broken=fail*9",
    "KEEPER__MAX_RETRIES": 1,
    "KEEPER__RETRY_BASE_S": 0.01,
}
UNITS = {"seconds": "_seconds", "bytes": "_bytes", "ratio": "_ratio"}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A farm that says all that it can say, after jobs that ended well, were cancelled, failed and were refused."""
    folder = tmp_path_factory.mktemp("farm")
    more = {"LOGS__LEVEL": "DEBUG", "LOGS__FORMAT": "json", "ENGINE__SYNTHETIC_STEP_S": 0.003}
    with running(folder, "--workers", 1, "--no-flower", **more, **BROKEN) as up:
        with Farm(load_settings(local={"state_dir": folder})) as farm:
            done = [farm.submit(f"{CANARY} {number}", max_tokens=9) for number in range(4)]
            failed = farm.submit(f"{CANARY} broken", max_tokens=5)
            cancelled = farm.submit(f"{CANARY} long", max_tokens=1500, ignore_eos=True)
            wait_until(lambda: cancelled.status().state == "running", why="the long one to run")
            cancelled.cancel()
            up.ready["texts"] = [job.result(timeout=30).text for job in done]
            wait_until(lambda: failed.status().state.is_terminal, why="the broken one to fail")
        for path, body in (("/v1/jobs", {"prompt": CANARY, "stop": 5}), ("/v1/completions", {"prompt": CANARY})):
            ask(f"{up.ready['api_url']}{path}", body)
        yield up


def ask(url: str, body: dict[str, Any] | None = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            text: str = answer.read().decode()
            return text
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.read().decode()


def declared(families: Sequence[Family]) -> dict[str, tuple[str, str]]:
    return {family.name: (family.kind, family.help) for family in families}


def exported(text: str) -> dict[str, tuple[str, str]]:
    """Kind and help by name, as a page has them."""
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE))
    return {name: (kind, helps[name]) for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)}


def test_every_part_exports_what_is_declared(up: Up) -> None:
    """Each page has exactly the families of its part, with their kinds and help; farm.json says where they are."""
    pages = json.loads((up.state_dir / "farm.json").read_text())["metrics"]
    assert pages == up.ready["metrics"]
    parts = {"worker-1": (*LEDGER, *MODEL), "system": (*LEDGER, *SYSTEM), "api": (*LEDGER, *API)}
    assert set(pages) == set(parts)
    for part, families in parts.items():
        assert exported(ask(pages[part])) == declared(families), part
    assert exported(ask(f"{up.ready['api_url']}/metrics")) == declared(parts["api"])


@pytest.mark.parametrize(
    "family", sorted({*LEDGER, *MODEL, *SYSTEM, *API}, key=lambda family: family.name), ids=lambda family: family.name
)
def test_names_are_prometheus(family: Family) -> None:
    """Prefix farm_, base units at the end, _total on counters alone, bounds that rise, each with its reason."""
    assert re.fullmatch(r"farm_[a-z0-9]+(_[a-z0-9]+)*", family.name)
    assert (family.kind == "counter") == family.name.endswith("_total")
    if family.unit in UNITS:
        assert family.name.removesuffix("_total").endswith(UNITS[family.unit])
    assert family.help.endswith(".")
    assert (family.kind == "histogram") == bool(family.buckets) == bool(family.reason)
    assert list(family.buckets) == sorted(set(family.buckets))
    assert not {"job", "prompt", "id", "key"} & set(family.labels)


def test_all_parts_agree_about_the_ledger(up: Up) -> None:
    """Whoever is asked, the jobs are the same."""
    for url in up.ready["metrics"].values():
        text = ask(url)
        for line in ('farm_jobs_total{model="tiny-bloom",state="succeeded"} 5.0', "farm_server_up 1.0"):
            assert line in text.splitlines(), url
        assert 'farm_jobs_total{model="tiny-bloom",state="failed"} 1.0' in text
        assert 'farm_jobs_total{model="tiny-bloom",state="cancelled"} 1.0' in text
        assert "farm_retries_total 1.0" in text


def test_requests_are_counted_by_route(up: Up) -> None:
    """Routes are templates; who waits for a job is apart; no path of a stranger becomes a label."""
    ask(f"{up.ready['api_url']}/v1/jobs/no-such-job")
    ask(f"{up.ready['api_url']}/no-such-page")
    text = ask(up.ready["metrics"]["api"])
    for route, method, status in (
        ("/v1/completions (wait)", "POST", "2xx"),
        ("/v1/jobs", "POST", "4xx"),
        ("/v1/jobs/{job_id}", "GET", "4xx"),
        ("(none)", "GET", "4xx"),
    ):
        assert f'farm_http_requests_total{{method="{method}",route="{route}",status="{status}"}} ' in text
    assert "no-such-job" not in text
    assert "no-such-page" not in text


def test_one_line_for_each_job(up: Up) -> None:
    """The worker says once for each attempt that ended how it went, and nothing of what was said in it."""
    log = (up.state_dir / "logs" / "local-1.log").read_text()
    lines = [json.loads(line) for line in log.splitlines() if '"event": "job"' in line]
    assert Counter(line["state"] for line in lines) == {"succeeded": 5, "queued": 1, "failed": 1, "cancelled": 1}
    assert {line["level"] for line in lines} == {"info"}
    for line in lines:
        assert {"job", "attempt", "worker", "tenant", "model", "reason", "tokens"} <= set(line)
        assert line["worker"].startswith("local-1.")
        if line["state"] == "succeeded":
            assert 0 <= line["queued_s"] <= line["ttft_s"] <= line["total_s"] < 60
            assert line["prompt_tokens"] > 0
    ended = [line["job"] for line in lines if line["state"] != "queued"]
    assert len(ended) == len(set(ended))


def test_no_log_holds_a_prompt_or_a_completion(up: Up) -> None:
    """Even at DEBUG: worker, engine, keeper, system worker and API."""
    texts = up.ready["texts"]
    assert len(set(texts)) == 4
    logs: list[Path] = sorted((up.state_dir / "logs").glob("*.log"))
    assert {log.stem for log in logs} >= {"local-1", "local-system", "api"}
    for log in logs:
        said = log.read_text()
        assert CANARY not in said, log.name
        for text in texts:
            assert text[:20] not in said, log.name
    assert '"level": "debug"' in (up.state_dir / "logs" / "local-1.log").read_text()
