"""Dashboards, rules and routes: current, complete, and about metrics that there are."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from api.metrics import API
from farm.metrics import LEDGER, Family
from grafana import runbooks
from grafana.writing import COMPONENT, HERE, files, linked
from tests.conftest import tool
from tests.monitoring import names
from workers.metrics import GPU, MODEL, SYSTEM

ROOT = HERE.parent
DECLARED: dict[str, Family] = {family.name: family for family in (*LEDGER, *MODEL, *SYSTEM, *GPU, *API)}
# Declared, and on no dashboard and in no alert, with the reason.
UNUSED: dict[str, str] = {}


def _run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, check=False)


def _lost(before: object, after: object, where: str) -> Iterator[str]:
    """Paths to what is in ``before`` and not, or otherwise, in ``after``."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from _lost(value, after.get(key), f"{where}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, value in enumerate(before):
            yield from _lost(value, after[index], f"{where}[{index}]")
    elif before != after:
        yield f"{where}: {before!r} became {after!r}"


@pytest.mark.fast
def test_what_is_generated_is_current() -> None:
    """python -m grafana would change nothing: dashboards, links to runbooks, and the manifests' copies."""
    made = files()
    for path, text in made.items():
        assert path.read_text(encoding="utf-8") == text, f"{path} is old: run python -m grafana"
    there = {path for folder in ("dashboards", "rules") for path in (COMPONENT / folder).iterdir()}
    assert there | set((HERE / "json").iterdir()) <= set(made), "a file that nothing makes"
    listed = yaml.safe_load((COMPONENT / "kustomization.yaml").read_text(encoding="utf-8"))
    taken = {*listed["resources"], *(file for made in listed["configMapGenerator"] for file in made["files"])}
    assert {f"{path.parent.name}/{path.name}" for path in there} <= taken


def test_moving_the_docs_moves_every_link(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With another address in pyproject.toml, all links of rules, their tests and dashboards lead there."""
    before, base = files(), runbooks.docs_url()
    assert any(f"{base}/runbooks/" in text for text in before.values())
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\nurls = {Documentation = "https://docs.example.com/farm/"}\n', encoding="utf-8")
    monkeypatch.setattr(runbooks, "PROJECT", project)
    after = files()
    for path, text in after.items():
        assert text.count("https://docs.example.com/farm/runbooks/") == before[path].count(f"{base}/runbooks/")
        assert f"{base}/" not in text
        assert linked(text) == text


@pytest.mark.parametrize("slug", sorted(names.dashboards()))
def test_grafana_knows_every_field(slug: str) -> None:
    """Read by the models of Grafana's schema and written again, a dashboard has lost nothing."""
    register_default_plugins()
    dashboard = names.dashboards()[slug]
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))
    assert not list(_lost(dashboard, again, slug))


def test_every_panel_can_be_read_by_a_stranger() -> None:
    """Each has a title of its own, a description, a unit and thresholds, and lies beside the others within the page."""
    seen = set()
    for slug, panel in names.panels():
        where = f"{slug}: {panel['title']}"
        assert where not in seen
        seen.add(where)
        assert len(panel["description"]) > 5, where
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"], where
        assert defaults["thresholds"]["steps"], where
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, where
    for slug, dashboard in names.dashboards().items():
        taken: set[tuple[int, int]] = set()
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
            assert not cells & taken, f"{slug}: {panel['title']} lies on another"
            taken |= cells


def test_every_query_names_its_source() -> None:
    """Each target has a letter of its own in its panel and asks the data source that was chosen, as its panel does."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    for slug, panel in names.panels():
        letters = [target["refId"] for target in panel["targets"]]
        assert len(letters) == len(set(letters)) > 0, f"{slug}: {panel['title']}"
        assert panel["datasource"] == source
        assert all(target["datasource"] == source for target in panel["targets"])
    for dashboard in names.dashboards().values():
        chosen = [variable for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
        assert all(variable["datasource"] == source for variable in chosen)


@pytest.mark.fast
def test_every_metric_is_declared() -> None:
    """What dashboards, records and alerts ask for is declared in the code or recorded by a rule."""
    recorded = set(names.records())
    for asked in [*names.drawn(), *names.ruled()]:
        for name in asked.names:
            if name.startswith("farm_"):
                found = DECLARED.get(names.family(name)) or DECLARED.get(name)
                assert found, f"{asked.where}: nobody exports {name}"
                assert (found.kind == "histogram") == (name != found.name), f"{asked.where}: {name} is a {found.kind}"
            elif name.startswith("farm:"):
                assert name in recorded, f"{asked.where}: nothing records {name}"


@pytest.mark.fast
def test_every_metric_is_shown() -> None:
    """What the code declares is on a dashboard or in a rule, and what is recorded is used."""
    used = {name for asked in [*names.drawn(), *names.ruled()] for name in asked.names}
    assert set(DECLARED) - {names.family(name) for name in used} - used == set(UNUSED)
    assert set(names.records()) <= used


@pytest.mark.fast
def test_labels_are_the_metrics_own() -> None:
    """An expression matches a metric by labels that it has."""
    for asked in [*names.drawn(), *names.ruled()]:
        for selector in asked.selectors:
            name, _, matchers = selector.partition("{")
            found = DECLARED.get(names.family(name)) or DECLARED.get(name)
            if found:
                labels = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)\s*\"", matchers))
                assert labels <= {*found.labels, "instance", "job", "le"}, f"{asked.where}: {selector}"


@pytest.mark.fast
def test_the_ledgers_values_are_never_summed() -> None:
    """All exporters tell the same of the ledger: max comes before anything else."""
    ledger = {family.name for family in LEDGER} - {"farm_server_up"}
    for asked in [*names.drawn(), *names.ruled()]:
        for name in asked.names & ledger if "$" not in asked.where else ():
            before = asked.expr[: asked.expr.index(name)].rstrip("(").rstrip()
            before = re.sub(r"\b(?:rate|increase)$", "", before).rstrip("( ")
            assert re.search(r"max( by \([\w, ]+\))?$", before), f"{asked.where}: {name} without max"


def test_prometheus_takes_its_files() -> None:
    """promtool finds nothing wrong in the configuration and the rules."""
    done = _run(tool("promtool", "prometheus"), "check", "config", HERE / "prometheus" / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted((HERE / "prometheus" / "tests").glob("*.yml")), ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_not_otherwise(path: Path) -> None:
    """promtool's own tests pass."""
    done = _run(tool("promtool", "prometheus"), "test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_both_ways() -> None:
    """Each is seen to fire and seen to be quiet."""
    seen: dict[str, set[bool]] = {name: set() for name in names.alerts()}
    for path in (HERE / "prometheus" / "tests").glob("*.yml"):
        for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            for alert in test["alert_rule_test"]:
                seen[alert["alertname"]].add(bool(alert["exp_alerts"]))
    assert {name for name, ways in seen.items() if ways != {True, False}} == set()


@pytest.mark.fast
def test_every_alert_leads_to_a_runbook() -> None:
    """Each has a severity, a wait, a summary, a description and a runbook, and the index names each beside it."""
    index = (ROOT / "docs" / "runbooks" / "README.md").read_text(encoding="utf-8")
    used = set()
    for name, alert in names.alerts().items():
        assert alert["labels"] == {"severity": alert["labels"]["severity"]}
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert alert["for"]
        said = alert["annotations"]
        assert set(said) == {"summary", "description", "runbook_url"}
        slug = said["runbook_url"].rpartition("/")[2].removesuffix(".html") + ".md"
        used.add(slug)
        text = (ROOT / "docs" / "runbooks" / slug).read_text(encoding="utf-8")
        assert name in text, f"{slug} does not say what {name} means"
        line = next(line for line in index.splitlines() if f"`{name}`" in line)
        assert f"]({slug})" in line
        assert alert["labels"]["severity"] in line
    written = {path.name for path in (ROOT / "docs" / "runbooks").glob("*.md")}
    assert written == used | {"README.md"}


def test_dashboards_lead_to_runbooks_that_there_are() -> None:
    """Every link of a panel or a dashboard is one."""
    for slug, dashboard in names.dashboards().items():
        links = [*dashboard["links"], *(link for panel in dashboard["panels"] for link in panel.get("links") or [])]
        for url in {link["url"] for link in links if link["type"] == "link"}:
            page = url.removeprefix(f"{runbooks.docs_url()}/").removesuffix(".html").replace("index", "README")
            assert (ROOT / "docs" / f"{page}.md").exists(), f"{slug}: {url}"


def test_alertmanager_sends_pages_to_the_pager() -> None:
    """amtool takes the example and routes by severity; what it inhibits by name are alerts."""
    amtool, config = tool("amtool", "prometheus-alertmanager"), HERE / "prometheus" / "alertmanager.yml"
    done = _run(amtool, "check-config", config)
    assert done.returncode == 0, done.stdout + done.stderr
    for severity, receiver in (("page", "pager"), ("ticket", "tickets")):
        done = _run(amtool, "config", "routes", "test", "--config.file", config, f"severity={severity}")
        assert done.stdout.strip() == receiver, done.stderr
    rules: list[dict[str, Any]] = yaml.safe_load(config.read_text(encoding="utf-8"))["inhibit_rules"]
    named = set(re.findall(r"Farm[A-Z]\w+", str(rules)))
    assert named
    assert named <= set(names.alerts())


def test_yaml_is_tidy() -> None:
    """yamllint finds nothing, warnings included."""
    done = _run(
        tool("yamllint", "yamllint", of="PyPI's package"), "--strict", "--config-file", ROOT / ".yamllint.yaml", HERE
    )
    assert done.returncode == 0, done.stdout
