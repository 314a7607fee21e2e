"""What Prometheus' operator and Grafana are told on a cluster: the same as anywhere else."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from grafana.writing import DASHBOARDS, HERE, RULES
from tests.k8s.manifests import Build, Object, build


@pytest.fixture(scope="module")
def monitored() -> Build:
    return build("gpu", ("monitoring",))


def test_the_rules_are_the_same(monitored: Build) -> None:
    """The PrometheusRules hold every group of grafana/prometheus/rules, unchanged."""
    on_cluster = {found["metadata"]["name"]: found["spec"]["groups"] for found in monitored.of("PrometheusRule")}
    expected = {f"bloomfarm-{path.stem}": yaml.safe_load(path.read_text())["groups"] for path in RULES.glob("*.yml")}
    assert on_cluster == expected


def test_the_dashboards_are_the_same(monitored: Build) -> None:
    """Each is in a ConfigMap with the label that Grafana's sidecar looks for, and small enough for kubectl apply."""
    for slug in DASHBOARDS:
        found = monitored.one("ConfigMap", f"bloomfarm-dashboard-{slug}")
        assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
        [text] = found["data"].values()
        assert json.loads(text) == json.loads((HERE / "json" / f"{slug}.json").read_text())
        assert len(json.dumps(found)) < 262_144, "what kubectl apply notes in an annotation"


def test_jobs_have_the_names_that_rules_know(monitored: Build) -> None:
    """Scraped pods of each component get the job that prometheus.yml gives them."""
    jobs = {
        job["job_name"]
        for job in yaml.safe_load((HERE / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    }
    seen = set()
    for found in monitored.of("PodMonitor", "ServiceMonitor"):
        for endpoint in found["spec"].get("podMetricsEndpoints", []) + found["spec"].get("endpoints", []):
            for component in _components(found):
                seen.add(_job(endpoint["relabelings"], component))
    assert seen == jobs - {"farm-flower"}


def _components(monitor: Object) -> list[str]:
    selector = monitor["spec"]["selector"]
    named = selector.get("matchLabels", {}).get("component")
    return [named] if named else [value for rule in selector["matchExpressions"] for value in rule["values"]]


def _job(relabelings: list[Object], component: str) -> str:
    [rule] = [rule for rule in relabelings if rule["targetLabel"] == "job"]
    source = component if rule.get("sourceLabels") == ["__meta_kubernetes_pod_label_component"] else ""
    found = re.fullmatch("(.*)", source)
    assert found
    return str(rule["replacement"]).replace("$1", found[1])
