"""Where the runbooks are: among the published docs."""

from __future__ import annotations

import tomllib
from pathlib import Path

LOCAL = "http://127.0.0.1:8008"
"""Where ``python -m docs.site --serve`` shows the docs to whoever runs it, on the machine of their browser."""
PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def docs_url() -> str:
    """Where docs/ is published: Documentation in pyproject.toml's [project.urls], LOCAL while there is none.

    Change it there and run ``python -m grafana``: rules, their tests, dashboards and manifests follow.
    """
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    return str(project.get("urls", {}).get("Documentation", LOCAL)).rstrip("/")


def url(name: str) -> str:
    """The address of a runbook; ``index`` is the list of all."""
    return f"{docs_url()}/runbooks/{name}.html"
