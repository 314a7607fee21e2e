"""``python -m grafana.local``: what Prometheus, Redis' exporter and Grafana need to watch the farm of ``farm up``.

Writes STATE_DIR/monitoring and prints the commands. Call it again when the farm was started again: ports may differ.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

from farm.settings import load_settings

HERE = Path(__file__).parent
PROMETHEUS = "127.0.0.1:9090"
EXPORTER = "127.0.0.1:9121"


@dataclass(frozen=True, slots=True)
class Note:
    """What a running farm says of itself: where each part answers /metrics, Flower, and its server with password."""

    metrics: Mapping[str, str]
    flower_url: str | None
    redis_url: str


def read_note(state_dir: Path) -> Note:
    """The note of the farm that runs in a folder. Raises FileNotFoundError where none does."""
    note = json.loads((state_dir / "farm.json").read_text(encoding="utf-8"))
    return Note(note["metrics"], note["flower_url"], note["redis_url"])


def configuration(note: Note, *, exporter: str = EXPORTER, rules: Path = HERE / "prometheus" / "rules") -> str:
    """prometheus.yml with a farm's own targets in place of the usual ones. Parts are instances by their names."""
    made = yaml.safe_load((HERE / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    targets = {job["job_name"]: list[dict[str, object]]() for job in made["scrape_configs"]}
    for name, url in note.metrics.items():
        targets[_job(name)].append(_target(url, name))
    targets["farm-redis"].append(_target(f"//{exporter}", "redis"))
    if note.flower_url:
        targets["farm-flower"].append(_target(note.flower_url, "flower"))
    for job in made["scrape_configs"]:
        job["static_configs"] = targets[job["job_name"]]
    made["rule_files"] = [str(rules / "*.yml")]
    text: str = yaml.safe_dump(made, sort_keys=False)
    return text


def exporter_environ(note: Note) -> dict[str, str]:
    """What tells Redis' exporter where the server is. The password is in the environment, in no argument list."""
    url = urlsplit(note.redis_url)
    named = {"REDIS_USER": url.username, "REDIS_PASSWORD": url.password}
    host = f"{url.hostname}:{url.port}" if url.port else str(url.hostname)
    return {"REDIS_ADDR": f"{url.scheme}://{host}", **{name: unquote(text) for name, text in named.items() if text}}


def _grafana_environ() -> dict[str, str]:
    return {
        "GF_SERVER_HTTP_ADDR": "127.0.0.1",
        "GF_PATHS_PROVISIONING": str(HERE / "provisioning"),
        "FARM_DASHBOARDS": str(HERE / "json"),
        "PROMETHEUS_URL": f"http://{PROMETHEUS}",
    }


def _job(part: str) -> str:
    if part == "api":
        return "farm-api"
    return "farm-system" if part.endswith("system") else "farm-worker"


def _target(url: str, name: str) -> dict[str, object]:
    return {"targets": [urlsplit(url).netloc], "labels": {"instance": name}}


def _write_private(path: Path, environ: Mapping[str, str]) -> None:
    path.touch(mode=0o600)
    path.write_text("".join(f"{name}={shlex.quote(text)}\n" for name, text in environ.items()), encoding="utf-8")


def main() -> None:
    """Write the files for the farm in the folder that was named, or in the usual one."""
    parser = argparse.ArgumentParser(
        prog="python -m grafana.local",
        description="Write what Prometheus, Redis' exporter and Grafana need to watch a running farm up, and print the "
        "commands that start them. The files go into the folder monitoring of its state folder.",
    )
    parser.add_argument(
        "state_dir",
        nargs="?",
        type=Path,
        metavar="STATE_DIR",
        help="the farm's state folder; FARM_LOCAL__STATE_DIR or the usual one unless given",
    )
    state_dir = parser.parse_args().state_dir or load_settings().local.folder
    try:
        note = read_note(state_dir)
    except FileNotFoundError:
        sys.exit(f"no farm runs in {state_dir}: start one with farm up, or name its folder")
    folder = state_dir / "monitoring"
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / "prometheus.yml").write_text(configuration(note), encoding="utf-8")
    _write_private(folder / "redis-exporter.env", exporter_environ(note))
    _write_private(folder / "grafana.env", _grafana_environ())
    sys.stderr.write(
        "Each in a terminal of its own; Prometheus, its exporter for Redis and Grafana must be there. The last one, in "
        "the repository, shows the runbooks that alerts and dashboards lead to:\n"
    )
    sys.stdout.write(
        f"prometheus --config.file={folder}/prometheus.yml --storage.tsdb.path={folder}/data "
        f"--web.listen-address={PROMETHEUS}\n"
        f"(set -a; . {folder}/redis-exporter.env; prometheus-redis-exporter -web.listen-address {EXPORTER})\n"
        f"(set -a; . {folder}/grafana.env; grafana server --homepath /usr/share/grafana)\n"
        "python -m docs.site --serve\n"
    )


if __name__ == "__main__":
    main()
