"""The shell scripts that the manifests carry, run as their containers run them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import workers
from tests.k8s.manifests import ROOT, build, clean_environ

MAKE_ACL = ROOT / "base" / "redis" / "make-acl.sh"
FETCH = ROOT / "overlays" / "gpu" / "fetch-weights.sh"
TINY = Path(workers.__path__[0]) / "tiny_bloom"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _make_acl(folder: Path, rules: str, **passwords: str) -> subprocess.CompletedProcess[str]:
    for name in ("rules", "passwords"):
        (folder / name).mkdir()
    (folder / "rules" / "users.acl").write_text(rules, encoding="utf-8")
    for user, password in passwords.items():
        (folder / "passwords" / user.replace("__", ".")).write_text(password, encoding="utf-8")
    command = ["sh", str(MAKE_ACL), str(folder / "rules"), str(folder / "passwords"), str(folder / "users.acl")]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)


def test_the_acl_file_holds_hashes_and_no_password(tmp_path: Path) -> None:
    """Rules are joined to one line a user, and passwords become their SHA-256, a previous one beside the new one."""
    rules = "# who\nuser a on -@all\n    # what\n    (~x +get)\n    +ping\n\nuser off off\nuser free on nopass +ping\n"
    done = _make_acl(tmp_path, rules, a="secret\n", a__previous="older", unused="x")
    assert done.returncode == 0, done.stderr
    new, old = (hashlib.sha256(text).hexdigest() for text in (b"secret", b"older"))
    lines = [" ".join(line.split()) for line in (tmp_path / "users.acl").read_text(encoding="utf-8").splitlines()]
    assert lines == [
        f"user a on -@all (~x +get) +ping #{new} #{old}",
        "user off off",
        "user free on nopass +ping",
    ]
    assert (tmp_path / "users.acl").stat().st_mode & 0o777 == 0o600


def test_a_missing_password_stops_the_start(tmp_path: Path) -> None:
    """A user without a password is an error that names it, and no ACL file is left behind."""
    done = _make_acl(tmp_path, "user a on -@all\nuser b on -@all\n", a="secret")
    assert done.returncode != 0
    assert "no password for b" in done.stderr
    assert not (tmp_path / "users.acl").exists()


def test_secrets_are_random_and_complete() -> None:
    """secrets.sh makes a different password for every user that users.acl knows, each time anew."""
    made = [
        subprocess.run(["sh", str(ROOT / "secrets.sh")], capture_output=True, text=True, check=True).stdout
        for _ in "12"
    ]
    values = [value for text in made for found in yaml.safe_load_all(text) for value in found["stringData"].values()]
    assert len(values) == len(set(values)) == 2 * 9
    assert all(len(value.rpartition(":")[2]) == 48 for value in values)
    needed = {
        entry["valueFrom"]["secretKeyRef"]["key"]
        for workload in build("ack", ("monitoring", "redis-ha")).workloads()
        for container in workload.all_containers
        for entry in container.get("env", [])
        if not entry.get("valueFrom", {}).get("secretKeyRef", {"optional": True}).get("optional")
    }
    keys = {key for found in yaml.safe_load_all(made[0]) for key in found["stringData"]}
    assert needed <= keys


class Fetch:
    """fetch-weights.sh with a hub that is a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.weights = folder / "weights"
        self.final = self.weights / COMMIT / "bloom-7b1"
        programs = folder / "bin"
        programs.mkdir()
        self.hub = folder / "hub"
        shutil.copytree(TINY, self.hub)
        hf = programs / "hf"
        # The hub can't be reached from tests: this is its client's command, copying from a folder.
        hf.write_text(
            "#!/bin/sh\nset -eu\n"
            f'echo "$@" >>{folder}/asked\n'
            'while [ "$1" != --local-dir ]; do shift; done\n'
            f'mkdir -p "$2/.cache"\ncp {self.hub}/* "$2"/\n',
            encoding="utf-8",
        )
        hf.chmod(0o755)

    def run(self, revision: str = COMMIT) -> subprocess.CompletedProcess[str]:
        environ = {
            **clean_environ(),
            "PATH": os.pathsep.join([str(self.folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT.parent),
            "WEIGHTS_DIR": str(self.weights),
            "FARM_MODEL__ID": "bigscience/bloom-7b1",
            "FARM_MODEL__REVISION": revision,
        }
        return subprocess.run(["sh", str(FETCH)], env=environ, capture_output=True, text=True, timeout=60, check=False)

    @property
    def asked(self) -> list[str]:
        path = self.folder / "asked"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


@pytest.fixture
def fetch(tmp_path: Path) -> Fetch:
    return Fetch(tmp_path)


def test_weights_appear_whole_and_once(fetch: Fetch) -> None:
    """The pinned revision is fetched, checked and renamed into place; a second run asks the hub nothing."""
    done = fetch.run()
    assert done.returncode == 0, done.stderr
    assert json.loads((fetch.final / "config.json").read_text(encoding="utf-8"))
    assert sorted(path.name for path in fetch.final.parent.iterdir()) == ["bloom-7b1"]
    assert not (fetch.final / ".cache").exists()
    [asked] = fetch.asked
    assert f"download bigscience/bloom-7b1 --revision {COMMIT}" in asked
    assert fetch.run().returncode == 0
    assert len(fetch.asked) == 1


def test_unservable_weights_never_appear(fetch: Fetch) -> None:
    """A download that no worker could serve ends the Job with the reason, and what workers wait for is not there."""
    (fetch.hub / "model.safetensors").unlink()
    done = fetch.run()
    assert done.returncode != 0
    assert "can't be served" in done.stderr
    assert not fetch.final.exists()


def test_a_branch_is_no_revision(fetch: Fetch) -> None:
    """Anything but a commit's 40 digits is refused before the hub is asked."""
    for revision in ("main", "CHANGE-ME", "", COMMIT[:-1], COMMIT + "0"):
        done = fetch.run(revision)
        assert done.returncode != 0
        assert "is no commit" in done.stderr
    assert not fetch.asked
