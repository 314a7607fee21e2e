"""Every overlay with every choice of components builds, and every object is what its API takes."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest

from farm import __version__
from tests.k8s.manifests import COMPONENTS, EVERYTHING, OVERLAYS, ROOT, Build, Object, build

OLDEST, NEWEST = "1.31", "1.37"
SCHEMAS = Path(__file__).parent / "schemas"
CLUSTER_WIDE = {"Namespace", "PriorityClass", "StorageClass"}
PLACEHOLDER = "CHANGE-ME"


def _choices() -> list[tuple[str, tuple[str, ...]]]:
    # keda-zero says how keda scales; alone it says nothing.
    alone = [("keda", name) if name == "keda-zero" else (name,) for name in COMPONENTS]
    return [*itertools.product(OVERLAYS, [(), EVERYTHING]), *(("gpu", components) for components in alone)]


def test_every_choice_builds() -> None:
    """Each overlay builds plain and with all components, one with each alone; no build names an object twice."""
    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(lambda choice: build(*choice), _choices()):
            names = [_name(found) for found in made.objects]
            assert len(names) == len(set(names)), made.name


def test_every_object_is_valid() -> None:
    """Each object fits its schema strictly in the newest Kubernetes, overlay gpu's in the oldest too.

    A kind without a schema fails.
    """
    made = [build(overlay, components) for overlay in OVERLAYS for components in ((), EVERYTHING)]
    different = {json.dumps(found, sort_keys=True): found for one in made for found in one.objects}
    production = {json.dumps(found, sort_keys=True) for found in build("gpu", EVERYTHING).objects}
    for text, found in different.items():
        if schema := _custom_schema(found):
            jsonschema.Draft7Validator(schema).validate(found)
            continue
        assert _is_built_in(found), f"{_name(found)}: no schema; add the CRD's to tests/k8s/schemas"
        for version in (OLDEST, NEWEST) if text in production else (NEWEST,):
            kubernetes_validate.validate(found, version, strict=True)


def test_schemas_are_their_sources() -> None:
    """Each schema is the one that SOURCES.json says it is, and names its repository, path and commit."""
    sources = json.loads((SCHEMAS / "SOURCES.json").read_text(encoding="utf-8"))
    assert {source["file"] for source in sources} == {path.name for path in SCHEMAS.glob("*_*.json")}
    for source in sources:
        assert hashlib.sha256((SCHEMAS / source["file"]).read_bytes()).hexdigest() == source["sha256"], source["file"]
        assert source["repo"]
        assert re.fullmatch(r"[0-9a-f]{40}", source["commit"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_has_its_namespace(overlay: str) -> None:
    """Everything that lives in a namespace says which, so nothing lands in whatever kubectl's context names."""
    for found in build(overlay, EVERYTHING).objects:
        expected = None if found["kind"] in CLUSTER_WIDE else "bloomfarm"
        assert found["metadata"].get("namespace") == expected, _name(found)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_are_pinned(overlay: str) -> None:
    """Every image has a tag, the farm's own the version of this package."""
    for workload in build(overlay, EVERYTHING).workloads():
        for container in workload.all_containers:
            name, _, tag = container["image"].rpartition(":")
            assert re.fullmatch(r"v?\d+\.\d+\.\d+(-alpine)?", tag), container["image"]
            if name.rpartition("/")[2].startswith("bloomfarm-"):
                assert tag == __version__


def test_what_an_operator_must_fill_in_is_marked() -> None:
    """local needs nothing filled in; the marks of the others are the ones that the deploy guides go through."""
    assert PLACEHOLDER not in build("local", EVERYTHING).text
    assert _marked(build("gpu", EVERYTHING)) == {"FARM_MODEL__REVISION"}
    assert _marked(build("ack", EVERYTHING)) == {"FARM_MODEL__REVISION", "image", "server"}


def test_every_file_is_used() -> None:
    """No manifest lies about that no kustomization takes in."""
    for folder in {path.parent for path in ROOT.rglob("kustomization.yaml")}:
        listed = (folder / "kustomization.yaml").read_text(encoding="utf-8")
        for path in folder.iterdir():
            if path.is_file() and path.name != "kustomization.yaml":
                assert path.name in listed, path


def _marked(made: Build) -> set[str]:
    return set(re.findall(rf"([\w.]+): {PLACEHOLDER}", made.text))


def _name(found: Object) -> tuple[str, str]:
    return found["kind"], found["metadata"]["name"]


def _custom_schema(found: Object) -> Object | None:
    group, _, version = found["apiVersion"].rpartition("/")
    path = SCHEMAS / f"{group}_{version}_{found['kind'].lower()}.json"
    if not path.exists():
        return None
    schema: Object = json.loads(path.read_text(encoding="utf-8"))
    return schema


def _is_built_in(found: Object) -> bool:
    group = found["apiVersion"].rpartition("/")[0]
    return "." not in group or group.endswith(".k8s.io")


def test_the_guides_name_what_is_there() -> None:
    """Every file that the deploy guides name exists, and their tables list every overlay and component."""
    guides = {path.name: path.read_text(encoding="utf-8") for path in (ROOT.parent / "docs" / "deploy").glob("*.md")}
    for name, text in guides.items():
        for path in re.findall(r"`((?:k8s|tests)/[\w./-]+)`", text):
            assert (ROOT.parent / path).exists(), f"{name}: {path}"
    for listed in (*OVERLAYS, *COMPONENTS):
        assert f"| `{listed}` |" in guides["kubernetes.md"], listed
