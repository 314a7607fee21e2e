"""The images api and flower: built from the Dockerfile as it is, looked at, and run against a real farm.

They stand on a base from this machine's files, since none can be pulled here (tests/containers/base.py).
"""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farm import __version__
from farm.ledger.jobs import Jobs
from farm.local.server import free_port
from tests.commands import farm
from tests.conftest import wait_until
from tests.containers.buildah import Buildah, Container
from tests.k8s.manifests import EVERYTHING, build
from tests.workers import WorkerProcess

BUILT = ("api", "flower")
FOREIGN = {
    "api": ("torch", "transformers", "accelerate", "flower", "ziglang"),
    "flower": ("torch", "fastapi", "ziglang"),
}
LARGEST_MB = {"api": 260, "flower": 150}
"""What an image may add to its base. For comparison, torch for CPUs alone is over 700 MB."""
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
# Building takes a minute on two idle cores, and several on busy ones.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def container(images: Buildah, request: pytest.FixtureRequest) -> Iterator[Container]:
    """A container of the image that a test names."""
    made = images.container(request.param, f"{request.param}-{request.node.originalname}")
    yield made
    made.kill()


def _size_mb(folder: Path) -> int:
    return int(subprocess.run(["du", "-sm", str(folder)], capture_output=True, text=True, check=True).stdout.split()[0])


@pytest.mark.parametrize("container", BUILT, indirect=True)
def test_images_are_small_and_hold_no_compiler(
    images: Buildah, container: Container, capsys: pytest.CaptureFixture[str]
) -> None:
    """The images api and flower have no torch, no compiler, no pip beside the farm, and are as small as that allows."""
    target = container.config["Labels"]["org.opencontainers.image.title"].removeprefix("bloomfarm-")
    size_mb = _size_mb(container.root / "opt" / "farm")
    with capsys.disabled():
        print(f"\nbloomfarm-{target} adds {size_mb} MB to its base")
    assert size_mb < LARGEST_MB[target]
    [packages] = (container.root / "opt" / "farm" / "lib").glob("python3.*/site-packages")
    assert (packages / "farm" / "ledger" / "scripts" / "shared" / "base.lua").is_file()
    assert (packages / "workers" / "tiny_bloom" / "tokenizer.json").is_file(), "the API counts a prompt's tokens"
    assert not [name for name in (*FOREIGN[target], "pip", "setuptools") if (packages / name).exists()]
    compilers = ("cc", "gcc", "g++", "c++", "clang", "as", "ld", "tcc", "zig", "nvcc")
    asked = container.ask("sh", "-c", f"command -v {' '.join(compilers)}; true")
    assert not asked.stdout
    assert not (container.root / "src").exists()


@pytest.mark.parametrize("container", BUILT, indirect=True)
def test_images_have_what_manifests_call(container: Container) -> None:
    """Every program that a manifest's command or probe calls in an image is in it."""
    title = container.config["Labels"]["org.opencontainers.image.title"]
    called = {"cat"}  # compose.yaml
    for workload in build("ack", EVERYTHING).workloads():
        for one in workload.all_containers:
            if one["image"].rpartition("/")[2].partition(":")[0] == title:
                commands = [
                    one["command"],
                    *(one.get(probe, {}).get("exec", {}).get("command", []) for probe in PROBES),
                ]
                called |= {command[0] for command in commands if command}
                called |= {
                    word for command in commands for text in command[2:] for word in re.findall(r"\$\(([a-z]+) ", text)
                }
    assert "farm" in called
    for program in called:
        assert container.ask("sh", "-c", f"command -v {program}").returncode == 0, program


@pytest.mark.parametrize("container", BUILT, indirect=True)
def test_images_say_what_they_are(container: Container) -> None:
    """An image runs as user 10001, names itself, its version and its licence, and says whether it is healthy."""
    config = container.config
    assert config["User"] == "10001:10001"
    assert container.ask("id", "-u").stdout.strip() == "10001"
    labels = {name.rpartition(".")[2]: text for name, text in config["Labels"].items()}
    assert labels["title"].startswith("bloomfarm-")
    assert labels["description"]
    assert (labels["version"], labels["licenses"]) == (__version__, "Apache-2.0")
    assert container.ask("farm", "--version").stdout.strip() == f"bloomfarm {__version__}"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert not config["Entrypoint"], "manifests name whole commands"
    assert not [entry for entry in config["Env"] if "PASSWORD" in entry or "PIP_" in entry]


@pytest.mark.parametrize("container", BUILT, indirect=True)
def test_the_farm_may_not_be_changed_from_inside(container: Container) -> None:
    """Whoever gets hold of a process in an image can write to its own folders and nowhere else."""
    found = container.ask(
        "sh", "-c", 'for d in / /etc /usr /opt /opt/farm/lib; do touch "$d/x" 2>/dev/null && echo "$d"; done; true'
    )
    assert not found.stdout
    for folder in ("/cache", "/run/farm", "/var/lib/farm", "/tmp"):  # noqa: S108
        assert container.ask("touch", f"{folder}/x").returncode == 0, folder
    suid = [path for path in (container.root / "opt").rglob("*") if path.is_file() and path.stat().st_mode & 0o6000]
    assert not suid


def _post(url: str, key: str, body: dict[str, object]) -> Any:
    head = {"Content-Type": "application/json", "Authorization": f"Bearer {key}", "Prefer": "wait=30"}
    request = urllib.request.Request(url, json.dumps(body).encode(), head)  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        return json.load(answer)


@pytest.mark.parametrize("container", ["api"], indirect=True)
def test_the_api_from_its_image_answers(images: Buildah, container: Container, jobs: Jobs, tmp_path: Path) -> None:
    """A prompt posted to the API in its image is answered, beside a system worker from the same image and a worker on
    the CPU; both pass the image's and the manifests' health checks, write nothing outside /tmp and end at SIGTERM."""
    url = jobs.settings.redis.url
    assert url is not None
    port = free_port()
    shared = {"FARM_REDIS__URL": url.get_secret_value(), "FARM_FILES__URL": str(tmp_path)}
    asked = {"FARM_API__PORT": str(port)}
    system = images.container("api", "system")
    worker = WorkerProcess(jobs, tmp_path, "cpu", ENGINE__KIND="bloom")
    before = _files(container.root)
    try:
        beat = {"FARM_WORKER__HEARTBEAT_FILE": "/run/farm/heartbeat"}
        system.start("farm", "worker", "--role", "system", "--name", "system", **shared, **beat)
        container.start(**shared, **asked, FARM_API__HOST="127.0.0.1")
        wait_until(lambda: container.is_healthy(**asked) or _is_over(container), why=container.log, timeout_s=60)
        assert not _is_over(container), container.log
        key = farm("keys", "create", "--tenant", "shop", "--json", REDIS__URL=shared["FARM_REDIS__URL"]).json["secret"]
        worker.wait_ready()
        job = _post(f"http://127.0.0.1:{port}/v1/jobs", key, {"prompt": "Once upon a time", "max_tokens": 8})
        assert job["state"] == "succeeded", job
        assert job["text"]
        probe = 'test $(($(date +%s) - $(stat -c %Y "$FARM_WORKER__HEARTBEAT_FILE"))) -lt 30'
        wait_until(lambda: system.ask("sh", "-c", probe, **beat).returncode == 0, why="the system worker's heartbeat")
        assert system.stop() == 0, system.log
        assert container.stop() == 0, container.log
        assert not container.is_healthy(**asked)
        assert _files(container.root) == before, "with a read-only root it would have failed"
    finally:
        worker.kill()
        system.kill()


def _is_over(container: Container) -> bool:
    return container.process is None or container.process.poll() is not None


def _files(root: Path) -> set[tuple[str, int]]:
    """Files of a container and their times, but for /tmp and what buildah keeps for itself."""
    own = {"tmp", "run", "proc", "sys", "dev", "etc"}
    folders = [folder for folder in root.iterdir() if folder.name not in own]
    return {(str(path), path.lstat().st_mtime_ns) for folder in folders for path in folder.rglob("*")}


@pytest.mark.parametrize("container", ["flower"], indirect=True)
def test_flower_from_its_image_answers(container: Container, jobs: Jobs) -> None:
    """Flower in its image starts with a password and not without one, is healthy, writes nothing
    outside /tmp and ends at SIGTERM."""
    url = jobs.settings.redis.url
    assert url is not None
    port = free_port()
    shared = {"FARM_REDIS__URL": url.get_secret_value(), "FARM_FLOWER__PORT": str(port)}
    refused = container.ask("farm", "flower", **shared)
    assert refused.returncode != 0
    assert "FLOWER_BASIC_AUTH" in refused.stderr
    before = _files(container.root)
    container.start(**shared, FARM_FLOWER__HOST="127.0.0.1", FLOWER_BASIC_AUTH="flower:secret")
    wait_until(lambda: container.is_healthy(**shared) or _is_over(container), why=container.log, timeout_s=60)
    assert not _is_over(container), container.log
    assert container.stop() == 0, container.log
    assert _files(container.root) == before, "with a read-only root it would have failed"
