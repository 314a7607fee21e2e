"""compose.yaml: what it says, and a farm from its services' own commands and environments, on loopback."""

from __future__ import annotations

import json
import re
import subprocess
import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from farm.settings import load_settings
from tests.conftest import tool
from tests.containers.composed import OWNED, Composed, image_of, project, resolved, services
from tests.containers.dockerfile import REPOSITORY, TARGETS, environ, lineage
from tests.k8s.pods import LOOPBACK

PROMETHEUS = REPOSITORY / "grafana" / "prometheus" / "compose.yml"


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    """Passwords, Redis, both workers, the API and Flower, all healthy."""
    running = Composed(tmp_path_factory.mktemp("compose"))
    try:
        made = running.run("passwords")
        assert made.returncode == 0, made.stderr
        running.start("redis")
        running.wait_healthy("redis")
        for service in ("worker", "system", "api", "flower"):
            running.start(service)
        for service in ("worker", "system"):
            running.wait_healthy(service)
        yield running
    finally:
        running.kill()


def test_it_is_tidy() -> None:
    """yamllint finds nothing in compose.yaml and in what Prometheus reads there."""
    yamllint = tool("yamllint", "yamllint", of="PyPI's package")
    config = ("--strict", "--config-file", str(REPOSITORY / ".yamllint.yaml"))
    files = [str(REPOSITORY / "compose.yaml"), str(PROMETHEUS)]
    done = subprocess.run([str(yamllint), *config, *files], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_compose_takes_it() -> None:
    """Docker Compose finds the file valid, and every part of a farm is in it. The operator starts none of them."""
    wanted = {"redis", "worker", "system", "api", "flower", "prometheus", "grafana", "redis-exporter"}
    assert wanted <= set(services())
    without_profiles = {name for name, about in services().items() if not about.get("profiles")}
    assert wanted <= without_profiles
    assert not services()["operator"].get("depends_on")


def test_the_pages_override_is_valid(tmp_path: Path) -> None:
    """What docs/deploy/docker.md says to put beside the file for a GPU makes the worker that image with all GPUs."""
    page = (REPOSITORY / "docs" / "deploy" / "docker.md").read_text(encoding="utf-8")
    found = re.search(r"^    services:\n(?:    .*\n)+", page, re.MULTILINE)
    assert found
    override = tmp_path / "compose.override.yaml"
    override.write_text(textwrap.dedent(found[0]), encoding="utf-8")
    worker = resolved(override)["services"]["worker"]
    assert worker["image"].partition(":")[0] == f"bloomfarm-{worker['build']['target']}" == "bloomfarm-worker"
    assert worker["build"]["context"] == str(REPOSITORY)
    assert worker["deploy"]["resources"]["reservations"]["devices"][0]["count"] == -1


def test_services_are_locked_down() -> None:
    """Every container has a read-only root, no capability and no way to get one; only the one that makes passwords
    is root, has no network, and ends."""
    for name, about in services().items():
        assert about["read_only"], name
        assert about["cap_drop"] == ["ALL"], name
        assert about["security_opt"] == ["no-new-privileges:true"], name
        assert not about.get("privileged"), name
        assert ("cap_add" in about) == (name == "passwords"), name
        assert about["logging"]["options"]["max-size"], name
    assert services()["passwords"]["network_mode"] == "none"
    assert services()["passwords"]["restart"] == "no"


def test_nothing_is_published_beyond_this_machine() -> None:
    """Ports are published on loopback alone, and Redis has none and no way out."""
    published = {name: about["ports"] for name, about in services().items() if about.get("ports")}
    assert set(published) == {"api", "flower", "prometheus", "grafana"}
    assert {port["host_ip"] for ports in published.values() for port in ports} == {LOOPBACK}
    assert set(services()["redis"]["networks"]) == {"ledger"}
    assert project()["networks"]["ledger"]["internal"] is True


def test_images_are_exact() -> None:
    """Our images are the Dockerfile's targets and have a tag; others' name a registry and a whole version."""
    for name, about in services().items():
        target = image_of(name)
        if target is None:
            assert re.fullmatch(r"docker\.io/[a-z0-9_/]+:v?\d+\.\d+\.\d+(-[a-z0-9]+)?", about["image"]), name
        else:
            assert target in TARGETS, name
    built = {about["build"]["target"] for about in services().values() if "build" in about}
    assert built == {image_of(name) for name in services()} - {None}
    valkey = yaml.safe_load_all((REPOSITORY / "k8s" / "base" / "redis" / "redis.yaml").read_text(encoding="utf-8"))
    used = {
        found["spec"]["template"]["spec"]["containers"][0]["image"]
        for found in valkey
        if "template" in found.get("spec", {})
    }
    assert used == {services()["redis"]["image"]}


@pytest.mark.parametrize("name", ["worker", "system", "api", "flower", "operator"])
def test_settings_are_settings(name: str) -> None:
    """Each part's variables are settings of the farm with values that it takes; none of them is a password."""
    target = image_of(name)
    assert target
    set_here = {**environ(target), **services()[name].get("environment", {})}
    load_settings({key: value for key, value in set_here.items() if key.startswith("FARM_")})
    assert not [key for key in set_here if "PASSWORD" in key or "SECRET" in key or "@" in set_here[key]]


def test_what_is_written_is_writable() -> None:
    """Whatever folder of ours a volume lies on is made by the image for its user, so that the volume belongs to it."""
    for name, about in services().items():
        if target := image_of(name):
            made = " ".join(line for stage in lineage(target) for line in stage.lines)
            writable = [mount for mount in about.get("volumes", []) if not mount.get("read_only")]
            assert all(f" {mount['target']}" in made for mount in writable), name
            assert "/tmp" in {mount.partition(":")[0] for mount in about["tmpfs"]}, name  # noqa: S108


def test_what_is_mounted_empty_belongs_to_its_user() -> None:
    """Docker gives a tmpfs to root with the mode of the image's folder, so each but /tmp says whose it is. A heartbeat
    is written into one of them."""
    for name, about in services().items():
        uid, _, gid = about.get("user", "10001:10001").partition(":")
        mounts = dict(mount.partition(":")[::2] for mount in about.get("tmpfs", []))
        for place, options in mounts.items():
            if place != "/tmp":  # noqa: S108
                assert {f"uid={uid}", f"gid={gid}", "mode=0700"} <= set(options.split(",")), f"{name}: {place}"
        heartbeat = about.get("environment", {}).get("FARM_WORKER__HEARTBEAT_FILE")
        assert heartbeat is None or str(Path(heartbeat).parent) in mounts, name


def test_mounted_files_are_there() -> None:
    """Every file or folder of the repository that a service mounts exists, and is mounted for reading only."""
    for name, about in services().items():
        for mount in about.get("volumes", []):
            if mount["type"] == "bind":
                assert Path(mount["source"]).is_dir(), f"{name}: {mount['source']}"
                assert mount["read_only"], name


def test_prometheus_asks_who_is_there() -> None:
    """Prometheus' file is valid, and it can reach every service that it asks."""
    promtool = tool("promtool", "prometheus")
    done = subprocess.run(
        [str(promtool), "check", "config", str(PROMETHEUS)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    networks = set(services()["prometheus"]["networks"])
    for target in _scraped().values():
        assert networks & set(services()[target.partition(":")[0]]["networks"]), target


def _scraped() -> dict[str, str]:
    """The service and port that each of Prometheus' jobs asks."""
    found = {}
    for job in yaml.safe_load(PROMETHEUS.read_text(encoding="utf-8"))["scrape_configs"]:
        [group] = job.get("static_configs", []) + job.get("dns_sd_configs", [])
        [found[job["job_name"]]] = group.get("targets") or [f"{name}:{group['port']}" for name in group["names"]]
    return found


def test_grafana_is_told_what_its_files_ask_for() -> None:
    """Every variable in Grafana's provisioning is set, and the dashboards lie where it says."""
    grafana = services()["grafana"]
    files = (REPOSITORY / "grafana" / "provisioning").rglob("*.yaml")
    asked = {
        name
        for path in files
        for name in re.findall(r"^ *\w+: \$(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert asked == {"FARM_DASHBOARDS", "PROMETHEUS_URL"}
    mounted = {mount["target"]: mount["source"] for mount in grafana["volumes"]}
    assert mounted[grafana["environment"]["FARM_DASHBOARDS"]] == str(REPOSITORY / "grafana" / "json")
    assert grafana["environment"]["PROMETHEUS_URL"] == "http://prometheus:9090"
    assert grafana["environment"]["GF_SECURITY_ADMIN_PASSWORD__FILE"] == "/run/password/login"


def test_passwords_are_made_once_and_given_to_their_owners(tmp_path: Path) -> None:
    """The first start makes a password per role; another changes none. Each container gets its own and no other, and
    nobody but its user may read it."""
    composed = Composed(tmp_path)
    assert composed.run("passwords").returncode == 0
    made = {path: path.read_text() for path in tmp_path.glob("password-*/*")}
    assert composed.run("passwords").returncode == 0
    assert {path: path.read_text() for path in tmp_path.glob("password-*/*")} == made
    roles = [composed.password(user) for user in ("producer", "api", "worker", "operator", "flower", "monitor")]
    assert len(set(roles)) == 6
    assert all(re.fullmatch("[0-9a-f]{48}", password) for password in roles)
    assert {path.stat().st_mode & 0o777 for path in made} == {0o600}
    owners = dict(re.findall(r"(\d+) (?:\S+ )*?(\S+)$", line)[0][::-1] for line in _chowned(tmp_path))
    for name, about in services().items():
        volumes = [mount["source"] for mount in about.get("volumes", []) if mount["source"].startswith("password-")]
        if name == "passwords":
            continue
        assert len(volumes) <= 1, name
        for volume in volumes:
            user = about.get("user", "472" if name == "grafana" else "10001").partition(":")[0]
            assert owners[str(tmp_path / volume)] == user, name
    for role in ("api", "worker", "operator", "flower"):
        assert (tmp_path / f"password-{role}" / "redis").read_text() == composed.password(role)


def _chowned(folder: Path) -> list[str]:
    """A line for each folder: its new owner, then the folder."""
    lines = [line.split()[1:] for line in (folder / OWNED).read_text(encoding="utf-8").splitlines()]
    return [f"{owner} {place}" for owner, *places in lines for place in places]


def _ask(url: str, key: str | None = None, body: dict[str, object] | None = None) -> Any:
    head = {"Content-Type": "application/json", "Prefer": "wait=30"}
    if key:
        head["Authorization"] = f"Bearer {key}"
    data = json.dumps(body).encode() if body else None
    with urllib.request.urlopen(urllib.request.Request(url, data, head), timeout=60) as answer:  # noqa: S310
        return json.load(answer)


def test_the_farm_answers(farm: Composed) -> None:
    """The operator makes a key; with it, and not without, the API has the worker answer a prompt."""
    url = f"http://{LOOPBACK}:{farm.ports['api:8000']}/v1/jobs"
    said = farm.run("operator", "keys", "create", "--tenant", "me", "--json")
    assert said.returncode == 0, said.stderr
    prompt: dict[str, object] = {"prompt": "Once upon a time", "max_tokens": 8}
    with pytest.raises(urllib.error.HTTPError, match="401"):
        _ask(url, None, prompt)
    job = _ask(url, json.loads(said.stdout)["secret"], prompt)
    assert (job["state"], job["model"]) == ("succeeded", "tiny-bloom")
    assert job["text"]


def test_no_password_shows(farm: Composed) -> None:
    """No password stands in a command line or in what the parts have logged."""
    secrets = [path.read_text() for path in farm.folder.glob("password-*/*")]
    for service in ("redis", "worker", "system", "api", "flower"):
        shown = " ".join(farm.arguments(service)) + farm.log(service)
        assert not [secret for secret in secrets if secret in shown], service


def test_what_is_kept_is_on_disk(farm: Composed) -> None:
    """Redis writes an append-only file into its volume, and asks for a user and a password."""
    assert list((farm.folder / "redis").rglob("*.aof"))
    client = tool("redis-cli", "redis-tools")
    asked = [str(client), "-p", str(farm.ports["redis:6379"]), "get", "{farm}:seq"]
    assert "NOAUTH" in subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False).stdout


@pytest.mark.parametrize(
    ("job", "metric"),
    [
        ("farm-worker", "farm_engine_steps_total"),
        ("farm-system", "farm_queue_depth"),
        ("farm-api", "farm_http_requests_total"),
        ("farm-flower", "flower_events_total"),
    ],
)
def test_prometheus_gets_its_metrics(farm: Composed, job: str, metric: str) -> None:
    """What each of Prometheus' jobs asks gives it metrics, without a key."""
    assert f"# TYPE {metric} " in farm.page(farm.ports[_scraped()[job]], "/metrics")


def test_the_exporter_logs_in(farm: Composed) -> None:
    """Prometheus' exporter finds the monitor's password in the file that was made for it."""
    exporter = tool("prometheus-redis-exporter", "prometheus-redis-exporter")
    port = farm.ports[_scraped()["farm-redis"]]
    farm.start("redis-exporter", str(exporter), f"-web.listen-address={LOOPBACK}:{port}")
    assert "\nredis_up 1\n" in farm.page(port, "/metrics")


def test_flower_wants_its_password(farm: Composed) -> None:
    """Flower is healthy, and shows nothing without the password that was made for it."""
    port = farm.ports["flower:5555"]
    assert farm.page(port, "/healthcheck") == "OK"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"http://{LOOPBACK}:{port}/workers", timeout=10)


def test_the_end_is_clean(farm: Composed) -> None:
    """SIGTERM, as docker compose stop sends it, reaches the farm's programs themselves, and they end with 0."""
    for service in ("api", "flower", "worker", "system", "redis"):
        assert farm.stop(service) == 0, farm.log(service)[-1000:]
