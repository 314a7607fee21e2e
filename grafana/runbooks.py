"""Where the runbooks are."""

from __future__ import annotations

BASE = "docs/runbooks"
"""What ``runbook_url`` and the dashboards' links begin with. As it stands it is a path in this repository. Where you
publish docs/, write that address here and run ``python -m grafana``: rules, dashboards and manifests follow."""


def url(name: str) -> str:
    """The address of a runbook."""
    return f"{BASE}/{name}.md"
