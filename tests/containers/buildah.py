"""buildah: build the Dockerfile and run what it makes, with no daemon, no registry and no network."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import tool
from tests.containers import base
from tests.containers.dockerfile import REPOSITORY

BASE = "localhost/base"
BUILD_S = 400
EXTRAS = ("api", "system", "s3", "flower")


class Buildah:
    """A store of images of its own in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = tool("buildah", "buildah")
        (folder / "tmp").mkdir()
        # Layers that share files where the kernel lets us, copies where not.
        works = self._command("overlay", "from", "--name", "probe", "scratch", check=False).returncode == 0
        self.driver = "overlay" if works else "vfs"

    def make_base(self) -> None:
        """The base image from this machine's files, and a folder of all the packages that the images take."""
        context = base.make(self.folder / "base")
        (self.folder / "Dockerfile").write_text("FROM scratch\nCOPY . /\n", encoding="utf-8")
        self.run("bud", "--tag", BASE, "--file", str(self.folder / "Dockerfile"), str(context))
        shutil.rmtree(context)
        download_packages(self.folder / "wheels")
        (self.folder / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n", encoding="utf-8")

    def build(self, target: str) -> None:
        """Build a target of the Dockerfile as it is, on our base."""
        context = ("--file", str(REPOSITORY / "Dockerfile"), str(REPOSITORY))
        wheels = (
            "--volume",
            f"{self.folder / 'wheels'}:/wheels:ro",
            "--secret",
            f"id=pip.conf,src={self.folder}/pip.conf",
        )
        arguments = (
            "--build-arg",
            f"PYTHON_IMAGE={BASE}",
            "--pull-never",
            "--target",
            target,
            "--tag",
            f"localhost/{target}",
        )
        self.run("bud", "--isolation", "chroot", "--format", "docker", "--layers", *wheels, *arguments, *context)

    def config(self, target: str) -> dict[str, Any]:
        """What the image says about itself, by Docker's names."""
        found: dict[str, Any] = json.loads(self.run("inspect", "--type", "image", f"localhost/{target}"))["Docker"][
            "config"
        ]
        return found

    def container(self, target: str, name: str) -> Container:
        """A container of an image, with nothing running in it yet."""
        self.run("from", "--pull-never", "--name", name, f"localhost/{target}")
        return Container(self, name, Path(self.run("mount", name).strip()), self.config(target))

    def run(self, *arguments: str) -> str:
        """A command of buildah's, to its end. Returns what it printed; fails with its words."""
        done = self._command(self.driver, *arguments, check=False)
        assert done.returncode == 0, f"buildah {arguments[0]}: {done.stdout[-1500:]}{done.stderr[-1500:]}"
        return done.stdout

    def command(self, driver: str | None = None) -> list[str]:
        """How buildah is called."""
        places = ["--root", str(self.folder / "store"), "--runroot", str(self.folder / "run")]
        return [str(self.program), "--storage-driver", driver or self.driver, *places]

    @property
    def environ(self) -> dict[str, str]:
        """Its caches lie in our folder."""
        return {**os.environ, "TMPDIR": str(self.folder / "tmp")}

    def remove(self) -> None:
        """All of it, mounts included."""
        for command in (("umount", "--all"), ("rm", "--all"), ("rmi", "--all", "--force")):
            self._command(self.driver, *command, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _command(self, driver: str, *arguments: str, check: bool) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command(driver), *arguments],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=BUILD_S,
            check=check,
        )


class Container:
    """A container on this machine's network: what runs in it is reached on loopback. ``root`` is its root folder."""

    def __init__(self, buildah: Buildah, name: str, root: Path, config: dict[str, Any]) -> None:
        self.buildah, self.name, self.root, self.config = buildah, name, root, config
        self.log_path = buildah.folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it to its end, as its user."""
        return subprocess.run(
            self._run(environ, command),
            env=self.buildah.environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self, *command: str, **environ: str) -> Container:
        """Start a command, or else the image's own."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self._run(environ, command or self.config["Cmd"]),
                env=self.buildah.environ,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def is_healthy(self, **environ: str) -> bool:
        """Ask the image's own health check once."""
        kind, *command = self.config["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self.ask(*command, **environ).returncode == 0

    def stop(self) -> int:
        """SIGTERM to what runs in it, and wait for the end. Returns its exit code."""
        assert self.process is not None
        main = psutil.Process(self.process.pid).children(recursive=True)[-1]
        main.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def kill(self) -> None:
        """End whatever still runs."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(self.process.pid).children(recursive=True):
                    child.kill()
            self.process.wait(30)

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def _run(self, environ: Mapping[str, str], command: tuple[str, ...] | list[str]) -> list[str]:
        settings = [word for name, text in environ.items() for word in ("--env", f"{name}={text}")]
        return [*self.buildah.command(), "run", "--isolation", "chroot", *settings, self.name, "--", *command]


def download_packages(folder: Path) -> None:
    """What the images of ``EXTRAS`` install, by this machine's pip as it is configured here."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(one for extra in EXTRAS for one in extras[extra]), "hatchling"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--only-binary", ":all:"]
    subprocess.run(
        [*pip, "--dest", str(folder), "--constraint", str(REPOSITORY / "constraints.txt"), *wanted],
        capture_output=True,
        text=True,
        timeout=BUILD_S,
        check=True,
    )
