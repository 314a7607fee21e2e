"""What is generated: the dashboards, the rules' links, and for Kubernetes copies of both in a manifest's form."""

from __future__ import annotations

import re
from pathlib import Path

from grafana import runbooks
from grafana.dashboards import api, overview, recovery, workers
from grafana.frame import text

HERE = Path(__file__).parent
COMPONENT = HERE.parent / "k8s" / "components" / "monitoring"
RULES = HERE / "prometheus" / "rules"
TESTS = HERE / "prometheus" / "tests"
DASHBOARDS = {"overview": overview, "workers": workers, "recovery": recovery, "api": api}

_RULE_HEAD = """\
# Written by `python -m grafana` from grafana/prometheus/rules/{name}.yml: change it there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: bloomfarm-{name}
  namespace: bloomfarm
  labels: {{app.kubernetes.io/part-of: bloomfarm}}
spec:
  groups:
"""


def files() -> dict[Path, str]:
    """Every generated file and what it should hold."""
    rules = {path: linked(path.read_text(encoding="utf-8")) for path in sorted(RULES.glob("*.yml"))}
    made = rules | {path: linked(path.read_text(encoding="utf-8")) for path in sorted(TESTS.glob("*.yml"))}
    for slug, module in DASHBOARDS.items():
        dashboard = text(module.build())
        made[HERE / "json" / f"{slug}.json"] = dashboard
        # kustomize reads no file outside its folder.
        made[COMPONENT / "dashboards" / f"{slug}.json"] = dashboard
    for path, content in rules.items():
        made[COMPONENT / "rules" / f"{path.stem}.yaml"] = _RULE_HEAD.format(name=path.stem) + _groups(content)
    return made


def linked(rules: str) -> str:
    """Rules, or their tests, with every ``runbook_url`` where ``runbooks`` says."""
    return re.sub(r"(?m)^(\s+runbook_url: ).*?([\w-]+)\.\w+$", lambda found: found[1] + runbooks.url(found[2]), rules)


def _groups(rules: str) -> str:
    """The groups of a rule file, two columns further in. Comments before them stay out."""
    body = rules.partition("\ngroups:\n")[2]
    return "".join(f"  {line}\n" if line else "\n" for line in body.rstrip("\n").split("\n"))
