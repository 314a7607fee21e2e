"""A farm from the manifests of overlay local: their commands, environments, ConfigMaps and probes, on loopback."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chord, group
from openai import OpenAI

from farm import Farm
from farm.contracts import JobState
from farm.settings import Settings, load_settings
from tests.conftest import tool, wait_until
from tests.k8s.manifests import build, clean_environ
from tests.k8s.pods import LOOPBACK, Cluster, Pod
from tests.receiver import Receiver

pytestmark = pytest.mark.alone

MAIN, BACKUP = "bloom7b1-inference", "bloom7b1-inference-backup"
PODS = {
    MAIN: "main-0",
    BACKUP: "backup-0",
    "bloom7b1-inference-api": "api-0",
    "bloomfarm-system": "system-0",
    "bloomfarm-flower": "flower-0",
}
# The image has its kernels compiled; here the developer's cache has them.
TALE_TOKENS = 400
WARM = {"XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Redis, a worker of each pool, a system worker, Flower and an API, all ready."""
    running = Cluster(build("local", ("monitoring",)), tmp_path_factory.mktemp("cluster"))
    # What an operator adds for batches and for receivers inside.
    shared = {"FARM_FILES__URL": str(tmp_path_factory.mktemp("files")), "FARM_WEBHOOKS__ALLOW": f"{LOOPBACK}/32"}
    try:
        running.start_redis()
        for workload, name in PODS.items():
            running.start(workload, name, **WARM, **shared)
        for pod in running.pods:
            pod.wait_ready()
        yield running
    finally:
        running.stop()


def _pod(cluster: Cluster, name: str) -> Pod:
    [found] = [pod for pod in cluster.pods if pod.name == name]
    return found


def _settings(cluster: Cluster, user: str, **redis: object) -> Settings:
    return load_settings({}, redis={"url": cluster.url(user), **redis})


def _denials(cluster: Cluster) -> set[tuple[str, str, str]]:
    """What Redis refused since the last look: whom, for which reason, what."""
    with cluster.client("admin") as admin:
        found = {(entry["username"], entry["reason"], entry["object"]) for entry in admin.acl_log(128)}
        admin.acl_log_reset()
    return found


def test_every_probe_passes(cluster: Cluster) -> None:
    """Each container's own liveness and readiness probes pass while its pod runs."""
    for pod in cluster.pods:
        for probe in ("livenessProbe", "readinessProbe"):
            assert pod.passes(probe), f"{probe} of {pod.name}: {pod.log[-1000:]}"


def test_a_producer_can_do_what_the_client_offers(cluster: Cluster) -> None:
    """With the producer's password: submit, wait, stream, map, cancel and wait for the disk; Redis refuses nothing."""
    with Farm(_settings(cluster, "producer")) as farm:
        assert farm.submit("A goat", max_tokens=8).result(timeout=60).text
        assert "".join(delta.text for delta in farm.submit("A hen", max_tokens=8).stream())
        assert len(list(farm.map(["one", "two"], max_tokens=2))) == 2
        job = farm.submit("A cow", max_tokens=1500)
        assert job.cancel() in (JobState.CANCELLED, JobState.SUCCEEDED)
        assert job.status().state.is_terminal
    with Farm(_settings(cluster, "producer", durability="fsync")) as farm:
        assert farm.submit("A pig", max_tokens=2).result(timeout=60).text
    assert not _denials(cluster)


def test_a_producer_can_use_plain_celery(cluster: Cluster) -> None:
    """With the producer's password: send_task, groups, chords and their results; Redis refuses nothing."""
    url = cluster.url("producer")
    app = Celery("shop", broker=url, backend=url, set_as_current=False)

    def task() -> Any:
        return app.signature("farm.generate", kwargs={"prompt": "A goat", "max_tokens": 3}, immutable=True)

    try:
        result = task().apply_async()
        assert result.get(timeout=60)["text"]
        result.forget()
        assert len(group(task(), task()).apply_async().get(timeout=60)) == 2
        assert chord([task(), task()], task()).apply_async().get(timeout=60)["text"]
    finally:
        app.close()
    assert not _denials(cluster)


def test_flower_sees_workers_and_tasks(cluster: Cluster) -> None:
    """Flower asks for a password, hears all workers, inspects them, and knows the length of the queues."""
    port = _pod(cluster, "flower-0").ports["flower"]
    login = base64.b64encode(cluster.secrets["bloomfarm-flower"]["basic-auth"].encode()).decode()

    def get(path: str) -> Any:
        request = urllib.request.Request(f"http://{LOOPBACK}:{port}{path}", headers={"Authorization": f"Basic {login}"})
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            return json.load(answer)

    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"http://{LOOPBACK}:{port}/workers", timeout=5)
    seen = get("/api/workers?refresh=1")
    assert {name.partition("@")[0] for name in seen} == {"main-0", "backup-0", "system-0"}
    queues = {queue["name"] for queue in get("/api/queues/length")["active_queues"]}
    assert {"farm.tiny-bloom", "farm.system"} <= queues
    assert not _denials(cluster)


def test_the_api_answers_with_a_key_of_the_operators(cluster: Cluster) -> None:
    """The operator makes a key; with it, and not without, the API takes a job, answers it and lists it."""
    made = _operate(cluster, "keys", "create", "--tenant", "shop")
    url = f"http://{LOOPBACK}:{_pod(cluster, 'api-0').ports['http']}/v1/jobs"
    body = json.dumps({"prompt": "A goat", "max_tokens": 4}).encode()

    def ask(address: str, data: bytes | None = None, **headers: str) -> tuple[int, Any]:
        request = urllib.request.Request(address, data, {"Content-Type": "application/json", **headers})  # noqa: S310
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return answer.status, json.load(answer)

    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask(url, body)
    key = {"Authorization": f"Bearer {made['secret']}"}
    status, job = ask(url, body, **key, **{"Idempotency-Key": "order-7"})
    assert status == 202
    assert ask(url, body, **key, **{"Idempotency-Key": "order-7"})[1]["id"] == job["id"], "a repeated submit is one job"
    assert ask(f"{url}/{job['id']}?wait=30", **key)[1]["state"] == "succeeded"
    assert not _denials(cluster)


def _operate(cluster: Cluster, *command: str) -> Any:
    """What a command of the operator's prints as JSON."""
    environ = {**clean_environ(), "FARM_REDIS__URL": cluster.url("operator"), "PATH": cluster.path}
    done = subprocess.run(
        ["farm", *command, "--json"], env=environ, capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(done.stdout)


def test_batches_and_webhooks_with_the_rights_of_their_roles(cluster: Cluster) -> None:
    """Through the API and the system worker: upload, run, tell the receiver, download, cancel, delete; Redis refuses
    nothing."""
    url = f"http://{LOOPBACK}:{_pod(cluster, 'api-0').ports['http']}/v1"
    line = json.dumps({"custom_id": "one", "prompt": "A goat", "max_tokens": 4}).encode() + b"\n"
    secret = _operate(cluster, "keys", "webhook-secret", "--tenant", "shop")["secret"]
    key = _operate(cluster, "keys", "create", "--tenant", "shop")["secret"]
    with Receiver() as receiver, OpenAI(base_url=url, api_key=key, max_retries=0) as client:
        file = client.files.create(file=("in.jsonl", line), purpose="batch")
        made = {"input_file_id": file.id, "endpoint": "/v1/completions", "completion_window": "24h"}
        batch = client.batches.create(**made, extra_body={"webhook_url": receiver.url})  # type: ignore[arg-type]
        wait_until(lambda: receiver.got, why="the end of the batch", timeout_s=60)
        assert receiver.got[0].verify(secret)["data"]["id"] == batch.id
        output = client.batches.retrieve(batch.id).output_file_id
        assert b'"custom_id":"one"' in client.files.content(output or "").read()
        other = client.batches.create(**made)  # type: ignore[arg-type]
        client.batches.cancel(other.id)
        wait_until(lambda: client.batches.retrieve(other.id).status == "cancelled", why="the other's end")
        assert len(client.batches.list(limit=1, after=other.id).data) == 1
        assert len(client.files.list(order="asc").data) >= 2
        assert client.files.delete(file.id).deleted
    assert _operate(cluster, "keys", "webhook-secret", "--tenant", "shop", "--rotate")["secret"] != secret
    assert not _denials(cluster)


def test_the_monitor_can_look(cluster: Cluster) -> None:
    """With the monitor's password: farm status, and Prometheus' exporter as the manifest runs it."""
    environ = {**clean_environ(), "FARM_REDIS__URL": cluster.url("monitor"), "PATH": cluster.path}
    said = subprocess.run(
        ["farm", "status", "--json"], env=environ, capture_output=True, text=True, timeout=60, check=True
    )
    assert {worker["role"] for worker in json.loads(said.stdout)["workers"]} == {"model", "system"}
    assert not _denials(cluster)
    exporter = tool("prometheus-redis-exporter", "prometheus-redis-exporter")
    pod = cluster.make("bloomfarm-redis-exporter", "exporter-0")
    args = pod.workload.main["args"]
    args[args.index(":9121")] = f"{LOOPBACK}:{pod.ports['metrics']}"
    pod.workload.main["command"] = [str(exporter)]
    pod.start().wait_ready()
    with urllib.request.urlopen(f"http://{LOOPBACK}:{pod.ports['metrics']}/metrics", timeout=10) as answer:
        metrics = answer.read().decode()
    pod.delete()
    assert "\nredis_up 1\n" in metrics
    assert "\nredis_aof_enabled 1\n" in metrics
    # The exporter does without. The slow log would show it prompts.
    assert _denials(cluster) <= {("monitor", "command", "slowlog|get")}


def test_a_drained_pod_loses_no_job(cluster: Cluster) -> None:
    """A worker's pod is deleted while it generates: it ends within its grace, and every job ends with every token."""
    main = _pod(cluster, "main-0")
    with Farm(_settings(cluster, "producer")) as farm:
        jobs = [farm.submit(f"Tale number {n}", max_tokens=TALE_TOKENS, min_tokens=TALE_TOKENS) for n in range(48)]
        wait_until(
            lambda: any(job.status().worker == main_worker(cluster) and job.status().text for job in jobs),
            why="the worker to be in the middle of something",
        )
        took_s = main.delete()
        assert took_s < main.workload.settings(main.workload.main).worker.drain_s + 5
        assert main.process is not None
        assert main.process.returncode == 0
        ended = [job.result(timeout=120) for job in jobs]
    assert {completion.usage.completion_tokens for completion in ended} == {TALE_TOKENS}
    views = [job.status() for job in jobs]
    handed_over = [view for view in views if any(record.reason == "drain" for record in view.history)]
    assert handed_over, "the drain came too late to mean anything"
    assert all(view.state is JobState.SUCCEEDED and view.strikes == 0 for view in views)
    assert not _denials(cluster)


def main_worker(cluster: Cluster) -> str | None:
    """The id under which the main pool's worker is known."""
    with cluster.client("admin") as admin:
        found: str | None = admin.hget("{farm}:names", "main-0")  # type: ignore[assignment]
    return found


def test_a_killed_redis_comes_back_with_every_job(cluster: Cluster) -> None:
    """Redis is killed with jobs waiting, and started again by its own command and probes: all jobs are there."""
    server = cluster.pods[0]
    with Farm(_settings(cluster, "producer")) as farm:
        jobs = [farm.submit(f"Poem number {n}", max_tokens=60) for n in range(16)]
        server.kill()
        assert not server.passes("livenessProbe")
        server.start().wait_ready()
        assert all(job.result(timeout=120).text for job in jobs)
    assert not _denials(cluster)


def test_the_liveness_probe_tells_a_live_worker_from_a_stuck_one(cluster: Cluster) -> None:
    """A worker that is stopped dead fails its own liveness probe once its file is old, and passes again afterwards."""
    pod = _pod(cluster, "backup-0")
    assert pod.process is not None
    heartbeat = pod.folder / "run" / "heartbeat"
    os.killpg(pod.process.pid, signal.SIGSTOP)
    try:
        assert pod.passes("livenessProbe")
        os.utime(heartbeat, (heartbeat.stat().st_mtime - 60,) * 2)
        assert not pod.passes("livenessProbe")
    finally:
        os.killpg(pod.process.pid, signal.SIGCONT)
    wait_until(lambda: pod.passes("livenessProbe"), why="the next heartbeat")
