"""Pods as processes on loopback: a container's own command, environment, ConfigMaps, Secrets, probes and end.

What a cluster would do is done here by hand: mounts become folders, Services 127.0.0.1, and every port a free one.
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis
import yaml

from farm.local.server import find_binary, free_port
from tests.conftest import tool, wait_until
from tests.k8s.manifests import ROOT, Build, Object, Workload, clean_environ

LOOPBACK = "127.0.0.1"
Secrets = dict[str, dict[str, str]]


def secrets() -> Secrets:
    """The Secrets that k8s/secrets.sh makes, by name and key."""
    said = subprocess.run(["sh", str(ROOT / "secrets.sh")], capture_output=True, text=True, check=True).stdout
    return {found["metadata"]["name"]: found["stringData"] for found in yaml.safe_load_all(said)}


def programs(folder: Path) -> str:
    """A PATH on which a container's programs are: this repository's farm, a Valkey server and a client for it."""
    folder.mkdir(parents=True)
    farm = folder / "farm"
    farm.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m farm.cli.main "$@"\n', encoding="utf-8")
    farm.chmod(0o755)
    for name, target in (("valkey-server", find_binary()), ("valkey-cli", tool("redis-cli", "redis-tools"))):
        (folder / name).symlink_to(target)
    return os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])


class Pod:
    """One pod of a workload.

    known: the Secrets. path: where programs are. services: where others are, as {"redis:6379": "127.0.0.1:40123"}.
    extra: variables that the manifest has otherwise. ``arguments`` go behind the command.
    """

    def __init__(
        self,
        workload: Workload,
        name: str,
        folder: Path,
        known: Secrets,
        path: str,
        *,
        services: Mapping[str, str] | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        self.workload = Workload(copy.deepcopy(workload.object), workload.build)
        self.name = name
        self.folder = folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._known, self._services = known, services or {}
        self.extra = dict(extra or {})
        self.arguments: tuple[str, ...] = ()
        self.ports = {port: free_port() for port in workload.ports}
        self._mounts = self._mount()
        self.log_path = self.folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.path = path

    def listen(self, port: str, address: str, number: int | None = None) -> None:
        """Have a server of Redis' listen at an address, and its probes ask there."""
        self.ports[port] = number or self.ports[port]
        self.arguments = ("--bind", address, "--port", str(self.ports[port]))
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            command = self.workload.main[probe]["exec"]["command"]
            asks = f"valkey-cli -h {address} -p {self.ports[port]} "
            command[-1] = re.sub(r"valkey-cli (-p \d+ )?", asks, command[-1])

    def start(self) -> Pod:
        """Run the init containers to their end, then start the container."""
        for container in self.workload.pod.get("initContainers", []):
            subprocess.run(self._command(container), env=self._environ(container), check=True, timeout=30)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._command(self.workload.main), *self.arguments],
                env=self._environ(self.workload.main),
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def wait_ready(self, timeout_s: float = 60) -> Pod:
        """As kubelet: the startup probe first, then readiness."""
        for probe in ("startupProbe", "readinessProbe"):
            if probe in self.workload.main:
                wait_until(
                    lambda probe=probe: self._is_over() or self.passes(probe),  # type: ignore[misc]
                    why=f"{probe} of {self.name}",
                    timeout_s=timeout_s,
                )
        assert not self._is_over(), f"{self.name} ended by itself: {self.log[-1500:]}"
        return self

    def passes(self, probe: str) -> bool:
        """Ask a probe of the container's once."""
        container = self.workload.main
        action = container[probe]
        if "exec" in action:
            command = [self._here(part) for part in action["exec"]["command"]]
            done = subprocess.run(
                command,
                env=self._environ(container),
                capture_output=True,
                timeout=action.get("timeoutSeconds", 1),
                check=False,
            )
            return done.returncode == 0
        url = f"http://{LOOPBACK}:{self.ports[action['httpGet']['port']]}{action['httpGet']['path']}"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            return bool(200 <= answer.status < 400)
        return False

    def delete(self) -> float:
        """What deleting a pod does: preStop, SIGTERM, the grace. Returns the seconds; fails if it had to be killed."""
        assert self.process is not None
        began = time.monotonic()
        hook: Object = self.workload.main.get("lifecycle", {}).get("preStop", {})
        if "exec" in hook:
            subprocess.run([self._here(part) for part in hook["exec"]["command"]], check=True)
        if "sleep" in hook:
            time.sleep(hook["sleep"]["seconds"])
        self.process.send_signal(signal.SIGTERM)
        left_s = self.workload.grace_s - (time.monotonic() - began)
        try:
            self.process.wait(left_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} outlived its grace: {self.log[-2000:]}") from None
        return time.monotonic() - began

    def kill(self) -> None:
        """End it as a crash of its node would."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def _is_over(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def _mount(self) -> dict[str, Path]:
        """A folder for every mount, filled from its ConfigMap or Secret."""
        mounts: dict[str, Path] = {}
        volumes: dict[str, Any] = {volume["name"]: volume for volume in self.workload.pod.get("volumes", [])}
        for container in self.workload.all_containers:
            for mount in container.get("volumeMounts", []):
                place = self.folder / mount["name"]
                place.mkdir(exist_ok=True)
                mounts[mount["mountPath"]] = place
        for name, volume in volumes.items():
            for file, text in self._files(volume).items():
                (self.folder / name / file).write_text(text, encoding="utf-8")
        mounts.pop("/tmp", None)  # noqa: S108
        for path in mounts.values():
            for file in path.iterdir():
                if file.suffix == ".conf":
                    file.write_text(self._here(file.read_text(encoding="utf-8"), mounts), encoding="utf-8")
        return mounts

    def _files(self, volume: Object) -> dict[str, str]:
        if about := volume.get("configMap"):
            return self.workload.build.config(about["name"])
        if about := volume.get("secret"):
            values = self._known[about["secretName"]]
            wanted = about.get("items") or [{"key": key, "path": key} for key in values]
            return {item["path"]: values[item["key"]] for item in wanted}
        return {}

    def _here(self, text: str, mounts: Mapping[str, Path] | None = None) -> str:
        """A text with the container's folders replaced by ours."""
        for path, place in sorted((mounts or self._mounts).items(), key=lambda pair: -len(pair[0])):
            text = text.replace(path, str(place))
        return text

    def _command(self, container: Object) -> list[str]:
        return [self._here(part) for part in [*container.get("command", []), *container.get("args", [])]]

    def _environ(self, container: Object) -> dict[str, str]:
        own = self.workload.environ(container, self._known)
        own = {name: text.replace("<metadata.name>", self.name) for name, text in own.items()}
        for name, port in (
            ("FARM_TELEMETRY__PORT", "metrics"),
            ("FARM_FLOWER__PORT", "flower"),
            ("FARM_API__PORT", "http"),
        ):
            if name in own:
                own[name] = str(self.ports[port])
        own = {name: LOOPBACK if text == "0.0.0.0" else self._here(text) for name, text in own.items()}  # noqa: S104
        for service, place in self._services.items():
            own = {name: text.replace(service, place) for name, text in own.items()}
        return {**clean_environ(), "PATH": self.path, **own, **self.extra}


class Cluster:
    """The pods of one build that run."""

    def __init__(self, made: Build, folder: Path) -> None:
        self.build, self.folder = made, folder
        self.secrets = secrets()
        self.path = programs(folder / "bin")
        self.pods: list[Pod] = []
        self.services: dict[str, str] = {}

    def start_redis(self) -> Pod:
        """Redis from its StatefulSet, on loopback, ready."""
        pod = self.make_redis("redis-0")
        self.services["redis:6379"] = f"{LOOPBACK}:{pod.ports['redis']}"
        return pod.start().wait_ready()

    def make_redis(
        self, name: str, address: str = LOOPBACK, port: int | None = None, extra: Mapping[str, str] | None = None
    ) -> Pod:
        """A pod of Redis at an address and port of its own, not started yet."""
        pod = self.make("redis", name, extra)
        pod.listen("redis", address, port)
        # Somebody who may look at everything: no user of the product can.
        self.secrets["bloomfarm-redis"]["admin"] = "admin"
        (pod.folder / "config" / "tests.acl").write_text("user admin on ~* &* +@all\n", encoding="utf-8")
        (pod.folder / "passwords" / "admin").write_text("admin", encoding="utf-8")
        return pod

    def start(self, workload: str, name: str, **extra: str) -> Pod:
        """A pod of a workload; returns before it is ready."""
        return self.make(workload, name, extra).start()

    def url(self, user: str) -> str:
        """Where Redis is for one of its users."""
        return f"redis://{user}:{self.secrets['bloomfarm-redis'][user]}@{self.services['redis:6379']}/0"

    def client(self, user: str) -> redis.Redis:
        made: redis.Redis = redis.Redis.from_url(self.url(user), decode_responses=True)
        return made

    def stop(self) -> None:
        for pod in reversed(self.pods):
            pod.kill()

    def make(self, workload: str, name: str, extra: Mapping[str, str] | None = None) -> Pod:
        """A pod of a workload, not started yet."""
        found = self.build.workload(workload)
        pod = Pod(found, name, self.folder, self.secrets, self.path, services=self.services, extra=extra)
        self.pods.append(pod)
        return pod
