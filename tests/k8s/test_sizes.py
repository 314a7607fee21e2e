"""Sizes and times fit each other: GPUs, memory, quotas, drains, loads, updates."""

from __future__ import annotations

import re

from tests.k8s.manifests import EVERYTHING, OVERLAYS, Build, build, is_ours, quantity


def test_gpus_are_requested_as_they_are_limited() -> None:
    """Workers of both pools get several whole GPUs, requests equal to limits, past the GPU nodes' taint."""
    for overlay in ("gpu", "ack"):
        made = build(overlay)
        for name in ("bloom7b1-inference", "bloom7b1-inference-backup"):
            worker = made.workload(name)
            resources = worker.main["resources"]
            assert resources["requests"] == resources["limits"], "Guaranteed: nobody else's load touches a worker"
            assert quantity(resources["limits"]["nvidia.com/gpu"]) >= 2
            assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in worker.pod["tolerations"]


def test_shared_memory_fits() -> None:
    """Shared memory is memory, more than the 64 MiB that containers get, and well within the container's limit."""
    worker = build("gpu").workload("bloom7b1-inference")
    [mount] = [m["name"] for m in worker.main["volumeMounts"] if m["mountPath"] == "/dev/shm"]  # noqa: S108
    [volume] = [v["emptyDir"] for v in worker.pod["volumes"] if v["name"] == mount]
    assert volume["medium"] == "Memory"
    limit = quantity(worker.main["resources"]["limits"]["memory"])
    assert 1 << 30 <= quantity(volume["sizeLimit"]) <= limit / 4


def test_the_local_farm_needs_no_gpu() -> None:
    """Overlay local asks for nothing that a laptop has not, and serves the model that comes with the farm."""
    made = build("local", EVERYTHING)
    assert "nvidia" not in made.text
    assert {w.environ(w.main)["FARM_MODEL__ID"] for w in made.workloads() if is_ours(w.main)} == {"tiny-bloom"}
    requests = [c["resources"]["requests"] for w in made.workloads() for c in w.containers]
    plain = build("local").workloads()
    cores = sum(
        int(w.object["spec"].get("replicas", 1)) * quantity(c["resources"]["requests"]["cpu"])
        for w in plain
        for c in w.containers
    )
    assert cores <= 4
    assert all("memory" in request for request in requests)


def test_the_quota_has_room_for_the_largest_farm() -> None:
    """With every autoscaler at its maximum all pods still fit the namespace's quota, and not many more would."""
    for overlay in OVERLAYS:
        made = build(overlay, EVERYTHING)
        quota = made.one("ResourceQuota", "bloomfarm")["spec"]["hard"]
        most = {s["spec"]["scaleTargetRef"]["name"]: s["spec"]["maxReplicaCount"] for s in made.of("ScaledObject")}
        most |= {
            h["spec"]["scaleTargetRef"]["name"]: h["spec"]["maxReplicas"] for h in made.of("HorizontalPodAutoscaler")
        }
        need = dict.fromkeys(quota, 0.0)
        for workload in made.workloads():
            surge = workload.object["spec"].get("strategy", {}).get("rollingUpdate", {}).get("maxSurge", 0)
            pods = most.get(workload.name, workload.object["spec"].get("replicas", 1)) + surge
            need["pods"] += pods
            for key in quota:
                side, _, resource = key.partition(".")
                if side in ("requests", "limits"):
                    need[key] += pods * sum(
                        quantity(c["resources"][side].get(resource, 0)) for c in workload.containers
                    )
        for key, amount in need.items():
            assert amount <= quantity(quota[key]), f"{overlay}: {key} {amount} > {quota[key]}"
        if gpus := quota.get("requests.nvidia.com/gpu"):
            assert need["requests.nvidia.com/gpu"] == quantity(gpus)


def test_grace_outlasts_the_drain(everything: Build) -> None:
    """A worker that is terminated has time to hand its jobs over twice; an API to be forgotten and to answer."""
    for workload in everything.workloads():
        if workload.component in ("worker", "system"):
            settings = workload.settings(workload.main)
            assert workload.grace_s >= 2 * settings.worker.drain_s + 10, workload.name
            assert "lifecycle" not in workload.main, "SIGTERM starts the drain; a hook would only delay it"
        if workload.component == "api":
            pause_s = workload.main["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert 5 <= pause_s < workload.grace_s - 30


def test_a_start_may_take_as_long_as_a_load(everything: Build) -> None:
    """The startup probe waits at least as long as the worker itself gives its engine to load."""
    for workload in everything.workloads():
        if workload.component == "worker":
            probe = workload.main["startupProbe"]
            assert (
                probe["periodSeconds"] * probe["failureThreshold"]
                > workload.settings(workload.main).engine.load_timeout_s
            )


def test_updates_need_no_spare_gpu() -> None:
    """A rolling update of workers frees GPUs before it takes any, one worker at a time."""
    for name in ("bloom7b1-inference", "bloom7b1-inference-backup"):
        strategy = build("gpu").one("Deployment", name)["spec"]["strategy"]
        assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}


def test_autoscaled_deployments_name_no_replicas(everything: Build) -> None:
    """Whatever an autoscaler scales has no replicas of its own, so applying the manifests again changes nothing."""
    scaled = [s["spec"]["scaleTargetRef"] for s in everything.of("ScaledObject", "HorizontalPodAutoscaler")]
    assert len(scaled) == 4
    for target in scaled:
        assert "replicas" not in everything.one(target["kind"], target["name"])["spec"]


def test_redis_has_memory_to_rewrite_its_file() -> None:
    """The container's limit leaves a quarter above maxmemory, and Redis keeps and loses nothing that it accepted."""
    for overlay in OVERLAYS:
        made = build(overlay)
        redis = made.workload("redis")
        conf = dict(re.findall(r"^(\S+) (.+)$", made.config("redis")["redis.conf"], re.MULTILINE))
        command = redis.main["command"]
        if "--maxmemory" in command:
            conf["maxmemory"] = command[command.index("--maxmemory") + 1]
        limit = quantity(redis.main["resources"]["limits"]["memory"])
        maxmemory = quantity(conf["maxmemory"].replace("gb", "Gi").replace("mb", "Mi"))
        assert maxmemory <= 0.75 * limit
        storage = redis.object["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"]
        assert quantity(storage) >= 4 * maxmemory, "the old and the new file lie there side by side"
        assert (conf["appendonly"], conf["appendfsync"], conf["maxmemory-policy"]) == ("yes", "always", "noeviction")
