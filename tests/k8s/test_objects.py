"""What the manifests say agrees with itself and with the programs that they run."""

from __future__ import annotations

import json
import subprocess
import sys

from farm.cli.main import COMMANDS
from farm.contracts import model_name
from tests.k8s.manifests import ROOT, Build, build, clean_environ, is_ours, selects


def test_selectors_match(everything: Build) -> None:
    """Each workload selects its own pods and no other's; Services, budgets and monitors select some."""
    workloads = everything.workloads()
    for workload in workloads:
        if workload.kind == "Job":
            continue
        mine = [w.name for w in workloads if selects(workload.object["spec"]["selector"], w.labels)]
        assert mine == [workload.name]
        for rule in workload.pod.get("topologySpreadConstraints", []):
            assert selects(rule["labelSelector"], workload.labels), workload.name
    for found in everything.of("PodDisruptionBudget", "PodMonitor"):
        taken = [w.name for w in workloads if selects(found["spec"]["selector"], w.labels)]
        assert taken, found["metadata"]["name"]
    budgets = everything.of("PodDisruptionBudget")
    for workload in workloads:
        covering = [b["metadata"]["name"] for b in budgets if selects(b["spec"]["selector"], workload.labels)]
        assert len(covering) <= 1, "the eviction API refuses pods of two budgets"


def test_services_lead_to_ports(everything: Build) -> None:
    """Each port of a Service is a port of the pods behind it, and each monitor scrapes a port that is there."""
    workloads = everything.workloads()
    for service in everything.of("Service"):
        behind = [w for w in workloads if selects({"matchLabels": service["spec"]["selector"]}, w.labels)]
        assert behind, service["metadata"]["name"]
        for port in service["spec"]["ports"]:
            assert all(port["targetPort"] in w.ports for w in behind), (service["metadata"]["name"], port)
    for monitor in everything.of("PodMonitor"):
        for workload in workloads:
            if selects(monitor["spec"]["selector"], workload.labels):
                for endpoint in monitor["spec"]["podMetricsEndpoints"]:
                    assert endpoint["port"] in workload.ports
    for monitor in everything.of("ServiceMonitor"):
        services = [
            s for s in everything.of("Service") if selects(monitor["spec"]["selector"], s["metadata"]["labels"])
        ]
        assert len(services) == 2
        names = {port["name"] for service in services for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= names


def test_the_services_of_the_recipe_are_there() -> None:
    """bloom7b1-inference:8000 and its twin lead to their own pool's API alone, with metrics on 8080."""
    made = build("gpu")
    for name, pool in (("bloom7b1-inference", "main"), ("bloom7b1-inference-backup", "backup")):
        service = made.one("Service", name)
        assert {port["port"] for port in service["spec"]["ports"]} == {8000, 8080}
        behind = [w for w in made.workloads() if selects({"matchLabels": service["spec"]["selector"]}, w.labels)]
        assert [(w.component, w.labels["pool"]) for w in behind] == [("api", pool)]
    assert made.one("Deployment", "bloom7b1-inference")["spec"]["replicas"] == 8


def test_ports_are_where_the_settings_listen(everything: Build) -> None:
    """A container's ports are those that its settings have it listen on, beyond loopback."""
    for workload in everything.workloads():
        for container in filter(is_ours, workload.containers):
            settings = workload.settings(container)
            listens: dict[str, tuple[str, int | None]] = {}
            if workload.component in ("worker", "system", "api"):
                listens["metrics"] = (settings.telemetry.host, settings.telemetry.port)
            if workload.component == "flower":
                listens["flower"] = (settings.flower.host, settings.flower.port)
            if workload.component == "api":
                listens["http"] = (settings.api.host, settings.api.port)
            declared = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
            assert declared == {name: port for name, (_, port) in listens.items()}, workload.name
            assert all(host == "0.0.0.0" for host, _ in listens.values())  # noqa: S104


def test_settings_load(everything: Build) -> None:
    """Every container of ours starts with settings that farm.settings accepts, for one model everywhere."""
    models = set()
    for workload in everything.workloads():
        for container in filter(is_ours, workload.containers):
            settings = workload.settings(container)
            models.add(settings.model.name)
            assert settings.logs.format == "json" or workload.kind == "Job"
    assert len(models) == 1


def test_variables_are_set_before_they_are_used(everything: Build) -> None:
    """No $(NAME) is left in an environment: kubelet fills in only what stands earlier in the list."""
    for workload in everything.workloads():
        for container in workload.all_containers:
            for name, text in workload.environ(container).items():
                assert "$(" not in text, f"{workload.name}: {name}={text}"


def test_every_long_running_container_is_probed(everything: Build) -> None:
    """Each container says when it lives and when it is ready, by a port that it has or by a command."""
    for workload in everything.workloads():
        for container in workload.containers if workload.kind != "Job" else []:
            for probe in ("livenessProbe", "readinessProbe"):
                action = container[probe]
                assert "exec" in action or action["httpGet"]["port"] in workload.ports, (workload.name, probe)
        if workload.component in ("worker", "system"):
            assert workload.main["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}


def test_commands_are_farms_own(everything: Build) -> None:
    """Containers of ours run subcommands that `farm` has, and settings say what arguments would."""
    commands = {tuple(c["command"][:2]) for w in everything.workloads() for c in w.containers if is_ours(c)}
    farms = {command[1] for command in commands if command[0] == "farm"}
    assert {"worker", "flower", "api"} == farms <= set(COMMANDS)
    assert {command[0] for command in commands} <= {"farm", "sh"}


def test_what_is_mounted_exists(everything: Build) -> None:
    """Every mount has a volume, every volume is mounted, every ConfigMap and claim is there."""
    maps = {found["metadata"]["name"] for found in everything.of("ConfigMap")}
    claims = {found["metadata"]["name"] for found in everything.of("PersistentVolumeClaim")}
    classes = {found["metadata"]["name"] for found in everything.of("PriorityClass")}
    for workload in everything.workloads():
        own = [c["metadata"]["name"] for c in workload.object["spec"].get("volumeClaimTemplates", [])]
        volumes = {volume["name"]: volume for volume in workload.pod.get("volumes", [])}
        mounted = {mount["name"] for c in workload.all_containers for mount in c.get("volumeMounts", [])}
        assert mounted == {*volumes, *own}, workload.name
        for volume in volumes.values():
            assert volume.get("configMap", {}).get("name") in {*maps, None}
            assert volume.get("persistentVolumeClaim", {}).get("claimName") in {*claims, None}
        assert workload.pod.get("priorityClassName") in {*classes, None}


def test_every_yaml_file_is_short_enough_to_read() -> None:
    """No manifest is longer than a few screens."""
    for path in ROOT.rglob("*.yaml"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 200, path


def test_system_workers_run_from_the_small_image() -> None:
    """A system worker, which runs from the API's image, imports neither torch nor transformers."""
    image = build("gpu").workload("bloomfarm-system").main["image"]
    assert image == build("gpu").workload("bloom7b1-inference-api").main["image"]
    program = (
        "import sys, json; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "import workers.app; print(json.dumps(sorted(m for m in sys.modules if m.startswith('workers.engine.'))))"
    )
    environ = {
        **clean_environ(),
        "FARM_REDIS__URL": "redis://127.0.0.1:1/0",
        "FARM_WORKER__ROLE": "system",
        "FARM_WORKER__NAME": "s",
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "workers.engine.engine" not in json.loads(done.stdout)


def test_weights_are_read_only_for_workers() -> None:
    """Workers mount the weights read-only and wait until the Job has put the pinned revision there."""
    made = build("gpu")
    fetch = made.workload("bloom7b1-weights")
    assert not [m for m in fetch.main["volumeMounts"] if m["name"] == "weights" and m.get("readOnly")]
    wanted = fetch.environ(fetch.main)
    folder = f"/weights/{wanted['FARM_MODEL__REVISION']}/{wanted['FARM_MODEL__ID'].rpartition('/')[2]}"
    for name in ("bloom7b1-inference", "bloom7b1-inference-backup"):
        worker = made.workload(name)
        [volume] = [v for v in worker.pod["volumes"] if v["name"] == "weights"]
        assert volume["persistentVolumeClaim"]["readOnly"] is True
        [waits] = worker.pod["initContainers"]
        for container in (waits, worker.main):
            assert worker.environ(container)["FARM_MODEL__ID"] == folder
            assert {"name": "weights", "mountPath": "/weights", "readOnly": True} in container["volumeMounts"]
    assert model_name(folder) == model_name(wanted["FARM_MODEL__ID"]) == "bloom-7b1"
