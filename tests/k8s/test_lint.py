"""What the linters say of the manifests: yamllint of the files, checkov of what they build."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.conftest import tool
from tests.k8s.manifests import EVERYTHING, ROOT, build

# Checks that this farm fails with reason.
NOT_OURS = {
    "CKV_K8S_15": "always pulling: tags are versions and never move",
    "CKV_K8S_35": "secrets as files: the farm's settings, Celery's and Flower's are environment variables",
    "CKV_K8S_43": "digests: known where the images are pushed; an overlay's images may pin them",
}


def test_yaml_is_tidy() -> None:
    """yamllint finds nothing, warnings included."""
    yamllint = tool("yamllint", "yamllint", of="PyPI's package")
    done = subprocess.run(
        [str(yamllint), "--strict", "--config-file", str(ROOT.parent / ".yamllint.yaml"), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_checkov_finds_nothing(tmp_path: Path) -> None:
    """checkov's checks of Kubernetes objects pass for a whole farm, but for three that are answered here."""
    checkov = tool("checkov", "checkov, in a virtual environment of its own: make test does,", of="PyPI's")
    (tmp_path / "ack.yaml").write_text(build("ack", EVERYTHING).text, encoding="utf-8")
    command = ["--framework", "kubernetes", "--directory", str(tmp_path), "--quiet", "--skip-download", "-o", "json"]
    done = subprocess.run(
        [str(checkov), *command, "--skip-check", ",".join(NOT_OURS)],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    report = json.loads(done.stdout)
    failed = {(f["check_id"], f["check_name"], f["resource"]) for f in report["results"]["failed_checks"]}
    assert not failed
    assert report["summary"]["passed"] > 500
    assert done.returncode == 0


def test_scripts_are_plain_shell() -> None:
    """Every script in the manifests parses under the shell that runs it, and stops at errors and unset names."""
    for script in ROOT.rglob("*.sh"):
        subprocess.run(["sh", "-n", str(script)], check=True)
        text = script.read_text(encoding="utf-8")
        assert text.startswith("#!/bin/sh\n"), script
        assert "\nset -eu\n" in text, script
