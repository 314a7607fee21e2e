"""How many workers KEDA would ask for: its queries run by Prometheus' own engine on made-up histories."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from farm.contracts import PRIORITIES, model_name
from farm.metrics import LEDGER
from tests.conftest import tool
from tests.k8s.manifests import Build, Object, build
from workers.metrics import MODEL

# What workers and APIs export, with labels.
METRICS = {family.name: set(family.labels) for family in (*LEDGER, *MODEL)}
PARTS = ("_sum", "_count", "_bucket")
PODS = ("system-a", "system-b", "worker-a")


@pytest.fixture(scope="module")
def scaled() -> Build:
    return build("gpu", ("keda",))


def _scaler(made: Build, name: str = "bloom7b1-inference") -> Object:
    spec: Object = made.one("ScaledObject", name)["spec"]
    return spec


def _query(made: Build, trigger: str, name: str = "bloom7b1-inference") -> str:
    [found] = [t for t in _scaler(made, name)["triggers"] if t["name"] == trigger]
    return str(found["metadata"]["query"])


def _depths(high: int, normal: int, low: int) -> dict[str, str]:
    """The same queue as three exporters see it."""
    levels = {"high": high, "normal": normal, "low": low}
    return {
        f'farm_queue_depth{{model="bloom-7b1",priority="{level}",pod="{pod}"}}': f"{jobs}x60"
        for level, jobs in levels.items()
        for pod in PODS
    }


def _running(jobs: int) -> dict[str, str]:
    return {
        f'farm_jobs_in_state{{model="{model}",state="running",pod="{pod}"}}': f"{count}x60"
        for pod in PODS
        for model, count in (("bloom-7b1", jobs), ("other", 1000))
    }


# Two jobs end a second, as three exporters see it; of what ended in the queue, or for another model, nothing is told.
TWO_A_SECOND = {
    f'farm_jobs_total{{model="{model}",state="{state}",pod="{pod}"}}': f"0+{step}x60"
    for pod in PODS
    for model, state, step in (
        ("bloom-7b1", "succeeded", 90),
        ("bloom-7b1", "failed", 30),
        ("bloom-7b1", "cancelled", 6000),
        ("other", "succeeded", 6000),
    )
}
OTHER_MODEL = {'farm_queue_depth{model="other",priority="high",pod="system-a"}': "1000x60"}


def _value(query: str, series: dict[str, str], folder: Path) -> float | None:
    """What a query says after half an hour of a history; None for nothing at all."""
    rules = {"groups": [{"name": "keda", "rules": [{"record": "answer", "expr": query}]}]}
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    test = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                # Wrong on purpose: promtool then prints what it got.
                "promql_expr_test": [
                    {"expr": "answer", "eval_time": "30m", "exp_samples": [{"labels": "wrong", "value": 0}]}
                ],
            }
        ],
    }
    (folder / "test.yaml").write_text(yaml.safe_dump(test), encoding="utf-8")
    done = subprocess.run(
        [str(tool("promtool", "prometheus")), "test", "rules", "test.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = done.stdout + done.stderr
    assert "got:" in said, said
    found = re.search(r"got:.*?(nil|\{__name__=\"answer\"\} (\S+))", said.replace("\n", " "))
    assert found, said
    return None if found[1] == "nil" else float(found[2].rstrip(","))


@pytest.mark.parametrize(
    ("series", "workers"),
    [
        ({**_depths(0, 0, 0), **_running(0)}, 0),
        ({**_depths(64, 64, 64), **_running(0)}, 192 * 20 / (32 * 60)),
        ({**_depths(0, 0, 192), **_running(0), **OTHER_MODEL}, 192 * 20 / (32 * 60)),
        ({**_depths(0, 192, 0), **_running(20), **TWO_A_SECOND}, 192 * 10 / (32 * 60) + 20 / 32),
        ({**_depths(0, 0, 0), **_running(256), **TWO_A_SECOND}, 256 / 32),
        ({**_depths(0, 192, 0), **_running(256), **TWO_A_SECOND}, 192 * 128 / (32 * 60) + 256 / 32),
        ({}, None),
    ],
    ids=["idle", "all priorities", "low alone", "measured seconds", "busy, none waits", "both", "no data"],
)
def test_demand(scaled: Build, tmp_path: Path, series: dict[str, str], workers: float | None) -> None:
    """Demand is what runs and what empties the queue in a minute, over all priorities, however many pods report it."""
    found = _value(_query(scaled, "demand"), series, tmp_path)
    assert found == pytest.approx(workers, abs=0.01) if workers is not None else found is None


def test_oldest(scaled: Build, tmp_path: Path) -> None:
    """The oldest job counts whatever its priority; a job that waits twice as long as it should doubles the pool."""
    series = {
        f'farm_queue_oldest_age_seconds{{model="bloom-7b1",priority="{level}",pod="system-a"}}': f"{age}x60"
        for level, age in zip(PRIORITIES, (3, 5, 120), strict=True)
    }
    for name in ("bloom7b1-inference", "bloom7b1-inference-backup"):
        assert _value(_query(scaled, "oldest", name), series, tmp_path) == 120
    [trigger] = [t for t in _scaler(scaled)["triggers"] if t["name"] == "oldest"]
    assert (trigger["metricType"], trigger["metadata"]["threshold"]) == ("Value", "60")


def test_queries_name_what_is_exported(scaled: Build) -> None:
    """Each query uses metrics and labels that the farm exports, for the model of the overlay, at no one priority."""
    model = model_name(scaled.config("bloomfarm")["FARM_MODEL__ID"])
    for scaler in scaled.of("ScaledObject"):
        for trigger in scaler["spec"]["triggers"]:
            query = trigger["metadata"]["query"]
            found = re.findall(r"(farm_[a-z0-9_]+)(?:\{([^}]*)\})?", query)
            assert found
            for name, selector in found:
                base = next((name.removesuffix(part) for part in PARTS if name.endswith(part)), name)
                metric = name if name in METRICS else base
                labels = dict(re.findall(r'(\w+)="([^"]*)"', selector))
                assert set(labels) <= METRICS[metric], f"{name} has no such label"
                assert labels.get("model", model) == model
                assert "priority" not in labels


def test_slots_are_the_workers(scaled: Build) -> None:
    """The number of slots in the query is the one that the workers are given."""
    slots = scaled.config("bloomfarm")["FARM_ENGINE__MAX_SLOTS"]
    assert set(re.findall(r"/ \(?(\d+)", _query(scaled, "demand"))) == {slots}


def test_bounds_and_fallback(scaled: Build) -> None:
    """Least is at most most, what is scaled exists, and no data means a fallback instead of an empty queue."""
    for scaler in scaled.of("ScaledObject"):
        spec = scaler["spec"]
        assert scaled.one(spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"])
        assert 1 <= spec["minReplicaCount"] <= spec["fallback"]["replicas"] <= spec["maxReplicaCount"]
        assert spec["fallback"]["behavior"] == "currentReplicasIfHigher"
        for trigger in spec["triggers"]:
            assert trigger["metadata"]["ignoreNullValues"] == "false"


def test_scaling_down_waits_for_drains(scaled: Build) -> None:
    """Workers go one at a time, the next one long after the last one's grace has ended."""
    for scaler in scaled.of("ScaledObject"):
        down = scaler["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
        [policy] = down["policies"]
        grace_s = scaled.workload(scaler["spec"]["scaleTargetRef"]["name"]).grace_s
        assert (policy["type"], policy["value"]) == ("Pods", 1)
        assert policy["periodSeconds"] > 2 * grace_s
        assert down["stabilizationWindowSeconds"] >= 600


def test_scale_to_zero_is_a_choice() -> None:
    """With keda-zero no GPU worker need run; system workers, which report the queue, always do."""
    made = build("gpu", ("keda", "keda-zero"))
    assert {s["spec"]["minReplicaCount"] for s in made.of("ScaledObject")} == {0}
    assert made.one("Deployment", "bloomfarm-system")["spec"]["replicas"] >= 2
