"""The metrics that dashboards and rules ask for, found in their expressions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from grafana.writing import HERE, RULES

PARTS = ("_bucket", "_sum", "_count")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_NAME = re.compile(r"\b(?:farm|redis)_[a-z0-9_]+|\bfarm:[a-z0-9_:]+|\bup\b")
_SELECTOR = re.compile(r'((?:farm|redis)_[a-z0-9_]+|farm:[a-z0-9_:]+|\bup\b)(\{(?:[^"}]|"(?:[^"\\]|\\.)*")*\})?')


@dataclass(frozen=True)
class Asked:
    """An expression and where it stands."""

    where: str
    expr: str

    @property
    def names(self) -> set[str]:
        """The metrics and records in it."""
        return set(_NAME.findall(_STRING.sub('""', self.expr)))

    @property
    def selectors(self) -> set[str]:
        """Each metric or record in it, with its matchers."""
        return {name + (matchers or "") for name, matchers in _SELECTOR.findall(self.expr)}


def rules() -> list[dict[str, Any]]:
    """Every rule."""
    return [
        rule
        for path in sorted(RULES.glob("*.yml"))
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
    ]


def records() -> dict[str, Asked]:
    """What is recorded, by name."""
    return {rule["record"]: Asked(rule["record"], rule["expr"]) for rule in rules() if "record" in rule}


def alerts() -> dict[str, dict[str, Any]]:
    """The alerts by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def dashboards() -> dict[str, dict[str, Any]]:
    """The dashboards as they lie in the repository."""
    paths: list[Path] = sorted((HERE / "json").glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every panel that is no row, with its dashboard."""
    for slug, dashboard in dashboards().items():
        for panel in dashboard["panels"]:
            if panel["type"] != "row":
                yield slug, panel


def drawn() -> list[Asked]:
    """Every expression of every panel, and the metric of every variable."""
    asked = [
        Asked(f"{slug}: {panel['title']}", target["expr"]) for slug, panel in panels() for target in panel["targets"]
    ]
    for slug, dashboard in dashboards().items():
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                metric = variable["query"].removeprefix("label_values(").partition(",")[0]
                asked.append(Asked(f"{slug}: ${variable['name']}", metric))
    return asked


def ruled() -> list[Asked]:
    """Every expression of every rule."""
    return [Asked(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]


def family(name: str) -> str:
    """The metric whose series a name is: a histogram has three kinds."""
    for part in PARTS:
        name = name.removesuffix(part)
    return name
