"""The doctor's judgement, given the facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from farm.doctor.checks import Check, size, worst
from farm.doctor.machine import check_folder, check_model, check_torch
from farm.doctor.server import (
    check_clock,
    check_eviction,
    check_memory,
    check_persistence,
    check_replicas,
    check_version,
)
from farm.settings import load_settings
from workers.engine.presets import PRESETS
from workers.probe import _sizes

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("check", "verdict"),
    [
        (check_version({"redis_version": "7.2.4"}), "ok"),
        (check_version({"redis_version": "7.2.4", "valkey_version": "9.1.2"}), "ok"),
        (check_version({"redis_version": "6.2.14"}), "fail"),
        (check_persistence({"aof_enabled": 1}, "everysec", "none"), "ok"),
        (check_persistence({"aof_enabled": 1}, None, "fsync"), "ok"),
        (check_persistence({"aof_enabled": 1}, "everysec", "fsync"), "warn"),
        (check_persistence({"aof_enabled": 1}, "no", "fsync"), "fail"),
        (check_persistence({"aof_enabled": 0}, "everysec", "none"), "warn"),
        (check_persistence({"aof_enabled": 1, "aof_last_write_status": "err"}, "everysec", "none"), "fail"),
        (check_eviction({"maxmemory_policy": "noeviction", "maxmemory": 1 << 30}), "ok"),
        (check_eviction({"maxmemory_policy": "allkeys-lru", "maxmemory": 1 << 30}), "fail"),
        (check_eviction({"maxmemory_policy": "allkeys-lru", "maxmemory": 0}), "warn"),
        (check_memory({"used_memory": 900, "maxmemory": 1000}), "warn"),
        (check_memory({"used_memory": 500, "maxmemory": 1000}), "ok"),
        (check_memory({"used_memory": 500, "maxmemory": 0}), "ok"),
        (check_clock(-0.4), "ok"),
        (check_clock(30.0), "warn"),
    ],
)
def test_verdicts_on_a_server(check: Check, verdict: str) -> None:
    """Each finding has its verdict, and whatever is not ok says what to do."""
    assert check.verdict == verdict
    assert bool(check.remedy) == (verdict != "ok")


MASTER = {"role": "master", "connected_slaves": 1}


@pytest.mark.parametrize(
    ("info", "wanted", "watched", "verdict"),
    [
        ({"role": "master", "connected_slaves": 0}, 0, False, None),
        ({"role": "master", "connected_slaves": 0}, 0, True, "warn"),
        ({"role": "master", "connected_slaves": 0}, 1, False, "fail"),
        ({"role": "slave"}, 0, False, "fail"),
        (MASTER, 0, False, "ok"),
        (MASTER, 2, True, "fail"),
        (MASTER, 1, True, "warn"),
        ({**MASTER, "min_slaves_good_slaves": 1}, 1, True, "ok"),
    ],
)
def test_verdicts_on_replicas(info: dict[str, Any], wanted: int, watched: bool, verdict: str | None) -> None:
    """Replicas must be as many as submissions wait for; with Sentinels, a master that is cut off must stop."""
    check = check_replicas(info, wanted, watched)
    assert (check and check.verdict) == verdict
    assert check is None or bool(check.remedy) == (verdict != "ok")


def test_a_clock_is_told_which_way_it_is_off() -> None:
    """A server that is ahead means that this machine is behind."""
    assert "30 s behind" in check_clock(30.0).found
    assert "30 s ahead" in check_clock(-30.0).found


def _facts(*, gpus: list[int] | None = None, **sizes: Any) -> dict[str, Any]:
    cards = [{"name": "H100", "bytes": count} for count in gpus or []]
    known = {
        "lacks": None,
        "dtype": "bfloat16" if cards else "float32",
        "weight_bytes": 4 * 10**9,
        "sequence_bytes": 10**9,
        "room_bytes": sum(gpus or [16 * 10**9]),
        "gpus": len(cards),
    }
    return {
        "torch": {"version": "2.13.0", "cuda": "12.8" if cards else None, "gpus": cards},
        "cores": 8,
        "model": {"is_here": True, "refused": None, "sizes": known | sizes},
    }


@pytest.mark.parametrize(
    ("facts", "verdict", "found"),
    [
        (_facts(), "ok", "4.0 GB in float32; 16.0 GB of free memory"),
        (_facts(lacks="9 bytes are missing"), "fail", "bigscience/bloom-7b1: 9 bytes are missing"),
        (_facts(weight_bytes=14 * 10**9, gpus=[80 * 10**9]), "ok", "14.0 GB in bfloat16; 80.0 GB of the 1 GPU"),
        (_facts(weight_bytes=14 * 10**9, gpus=[9 * 10**9] * 2), "warn", "18.0 GB of the 2 GPUs"),
    ],
)
def test_a_model_is_held_against_memory(facts: dict[str, Any], verdict: str, found: str) -> None:
    """Weights and one full sequence must fit the GPUs, or the machine where there are none."""
    check = check_model(facts, load_settings(model={"id": "bigscience/bloom-7b1"}))
    assert check.verdict == verdict
    assert found in check.found
    assert bool(check.remedy) == (verdict != "ok")


def test_a_model_of_unknown_shape_is_no_failure() -> None:
    """What is neither here nor published is weighed by the first worker."""
    facts = _facts()
    facts["model"] |= {"is_here": False, "sizes": None}
    check = check_model(facts, load_settings(model={"id": "someone/bloom"}))
    assert (check.verdict, "size unknown" in check.found) == ("warn", True)


GIB = 1 << 30


@pytest.mark.parametrize(
    ("gpus", "engine", "weight_bytes"),
    [
        ([80 * GIB], {}, 14_138_032_128),
        ([80 * GIB], {"quantization": "int8"}, 9_140_000_000),
        ([80 * GIB] * 4, {"devices": "cuda:1", "kv_dtype": "int8"}, 14_138_032_128),
        ([14 * GIB], {}, None),
        ([14 * GIB], {"quantization": "int8"}, 9_140_000_000),
        ([80 * GIB], {"devices": "cuda:1"}, None),
    ],
)
def test_a_model_weighs_what_the_engine_keeps_of_it(
    monkeypatch: pytest.MonkeyPatch, gpus: list[int], engine: dict[str, Any], weight_bytes: int | None
) -> None:
    """Weights in 8 bits count as such, on the devices that the settings name; what it would refuse fails."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(gpus))
    cards = [{"name": "H100", "bytes": count} for count in gpus]
    settings = load_settings(model={"id": "bigscience/bloom-7b1"}, engine=engine)
    sizes = _sizes(PRESETS["bigscience/bloom-7b1"], settings, cards)
    check = check_model({"model": {"is_here": True, "refused": None, "sizes": sizes}}, settings)
    if weight_bytes is None:
        assert check.verdict == "fail"
    else:
        assert check.verdict == "ok"
        assert sizes["weight_bytes"] == pytest.approx(weight_bytes, rel=0.01)
        assert sizes["gpus"] == 1
    assert ("weights in int8" in check.found) == ("quantization" in engine)


def test_a_refused_model_is_said_in_the_worker_s_words() -> None:
    """A folder that holds no Bloom fails before any worker is started on it."""
    facts = _facts()
    facts["model"] = {"is_here": False, "refused": "/x has no config.json", "sizes": None}
    assert check_model(facts, load_settings()).verdict == "fail"


def test_torch_is_held_against_the_gpus() -> None:
    """A CUDA build that sees no GPU is worth a word."""
    facts = _facts()
    facts["torch"]["cuda"] = "12.8"
    assert [check.verdict for check in check_torch(facts)] == ["warn"]
    assert [check.verdict for check in check_torch(_facts(gpus=[80 * 10**9]))] == ["ok"]


def test_the_state_folder_should_be_private(tmp_path: Path) -> None:
    """A folder that others can read is worth a word; one that is not there yet is fine."""
    tmp_path.chmod(0o755)
    assert check_folder(tmp_path).verdict == "warn"
    tmp_path.chmod(0o700)
    assert check_folder(tmp_path).verdict == "ok"
    assert check_folder(tmp_path / "new").verdict == "ok"
    (tmp_path / "file").touch()
    assert check_folder(tmp_path / "file" / "below").verdict == "fail"


def test_the_worst_counts() -> None:
    """One failure outweighs everything."""
    ok, warn, fail = Check("a", "ok", ""), Check("b", "warn", "", "x"), Check("c", "fail", "", "x")
    assert worst([ok]) == "ok"
    assert worst([warn, ok]) == "warn"
    assert worst([fail, warn, ok]) == "fail"


def test_sizes_read_well() -> None:
    """Bytes come in powers of ten with a sensible number of digits."""
    assert [size(count) for count in (12, 3_700_000, 14_140_000_000, 640_000_000_000)] == [
        "12 B",
        "3.7 MB",
        "14.1 GB",
        "640 GB",
    ]
