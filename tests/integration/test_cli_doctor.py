"""``farm doctor`` against servers that are well, ill and absent."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from farm.local.server import EmbeddedServer
from tests.commands import Said, farm
from workers.tiny_bloom import FOLDER


def _verdicts(said: Said) -> dict[str, Any]:
    return {check["name"]: check["verdict"] for check in said.json["checks"]}


@pytest.mark.parametrize(
    ("options", "expected", "code"),
    [
        ({}, {"server": "ok", "version": "ok", "persistence": "ok", "eviction": "ok", "workers": "warn"}, 0),
        ({"appendonly": "no"}, {"persistence": "warn", "eviction": "ok"}, 0),
        ({"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}, {"persistence": "ok", "eviction": "fail"}, 1),
    ],
)
def test_a_server_is_judged(tmp_path: Path, options: dict[str, str], expected: dict[str, str], code: int) -> None:
    """Persistence and eviction have the verdict they deserve; only a failure fails the command."""
    server = EmbeddedServer(tmp_path, options=options)
    server.start()
    try:
        said = farm("doctor", "--json", REDIS__URL=server.url, LOCAL__STATE_DIR=tmp_path)
    finally:
        server.stop()
    verdicts = _verdicts(said)
    assert expected.items() <= verdicts.items()
    assert {"torch", "model", "state folder", "flower", "clock"} <= verdicts.keys()
    assert said.code == code


def test_an_absent_server_is_3(tmp_path: Path) -> None:
    """The rest is examined all the same, and each finding that is not ok says what to do."""
    said = farm("doctor", REDIS__URL="redis://127.0.0.1:1/0", LOCAL__STATE_DIR=tmp_path)
    assert said.code == 3
    assert "fail  server" in said.out
    assert "-> start it, or correct FARM_REDIS__URL" in said.out
    assert "model" in said.out


def test_a_machine_without_a_farm_is_no_failure(tmp_path: Path) -> None:
    """Before the first farm up the doctor says what there is and how to start."""
    said = farm("doctor", "--json", LOCAL__STATE_DIR=tmp_path / "new")
    assert said.code == 0
    assert _verdicts(said)["server"] == "warn"
    assert _verdicts(said)["redis program"] == "ok"
    assert said.json["verdict"] == "warn"


def test_a_model_without_a_tokenizer_is_refused_before_it_is_started(tmp_path: Path) -> None:
    """The doctor refuses what a worker would refuse: here a folder that lacks its tokenizer."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(FOLDER / name, tmp_path / name)
    said = farm("doctor", "--json", MODEL__ID=tmp_path, LOCAL__STATE_DIR=tmp_path / "state")
    assert said.code == 1
    assert "tokenizer.json" in said.out
