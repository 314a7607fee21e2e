"""``farm plan``: what it understands, what it answers, how it refuses."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from farm.cli.main import main
from farm.cli.plan import PlanFailed, plan
from farm.cli.sizes import parse_devices, parse_size
from farm.errors import InvalidRequest
from tests.commands import Said, environ, farm

GIB = 1 << 30
BLOOM = ("plan", "--model", "bigscience/bloom-7b1")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs a command in this process, for to load transformers' models takes five seconds in each that does."""

    def run(*args: object, **settings: object) -> Said:
        for name in os.environ.keys() - environ().keys():
            monkeypatch.delenv(name)
        for name, text in settings.items():
            monkeypatch.setenv(f"FARM_{name}", str(text))
        monkeypatch.setattr(sys, "argv", ["farm", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        return Said(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.mark.fast
@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("4x16GiB", [16 * GIB] * 4),
        ("16GiB,24GiB", [16 * GIB, 24 * GIB]),
        ("2x80GB", [80 * 10**9] * 2),
        ("80GiB", [80 * GIB]),
        ("2x16GiB, 24gib", [16 * GIB, 16 * GIB, 24 * GIB]),
        ("1.5TB", [15 * 10**11]),
        ("2 x 512MiB", [512 << 20] * 2),
    ],
)
def test_devices_are_written_as_people_do(text: str, sizes: list[int]) -> None:
    """Counts, lists and both kinds of units are understood."""
    assert parse_devices(text, "--devices") == sizes


@pytest.mark.fast
@pytest.mark.parametrize(
    "text",
    [
        "",
        "4",
        "16G",
        "x16GiB",
        "4y16GiB",
        "4x",
        "-1GiB",
        "0x16GiB",
        "0GiB",
        "16GiB,",
        "999x1GiB",
        "4x16GiBs",
        "9" * 400 + "GiB",
    ],
)
def test_nonsense_is_named_with_an_example(text: str) -> None:
    """Whoever mistypes devices reads what was typed and how it is written."""
    with pytest.raises(InvalidRequest) as refused:
        parse_devices(text, "--devices")
    assert str(refused.value).startswith("--devices: ")
    assert "4x16GiB" in str(refused.value) or "give 1 to 256" in str(refused.value)


@pytest.mark.fast
def test_sizes_have_units() -> None:
    """GB is a power of ten and GiB of two; a bare number is refused."""
    assert (parse_size("1GB", "--reserve"), parse_size("1 GiB", "--reserve")) == (10**9, GIB)
    assert parse_size("0B", "--reserve") == 0
    with pytest.raises(InvalidRequest, match="16GiB"):
        parse_size("512", "--reserve")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["--devices", "4y16"], "farm: --devices: '4y16' names no devices; write them like 4x16GiB"),
        (["--dtype", "int8"], "--dtype bf16"),
        (["--length", "4096"], "4,096 tokens > 2,048"),
        (["--context", "1"], "FARM_ENGINE__MAX_CONTEXT"),
    ],
)
def test_wrong_usage_is_2(args: list[str], hint: str) -> None:
    """What can't be understood ends with 2, before anything is loaded."""
    said = farm("plan", *args)
    assert said.code == 2
    assert hint in said.err
    assert len(said.err.splitlines()) == 1


@pytest.mark.fast
def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the worker's libraries the command says what to install."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "accelerate" else find(name))
    with pytest.raises(PlanFailed, match=r"needs accelerate; install .* pip install 'bloomfarm\[worker\]'"):
        plan()


def test_a_plan_is_json_for_programs() -> None:
    """Bloom-7B1 over four devices: layers, bytes, and how many sequences of each length fit."""
    found = farm(*BLOOM, "--devices", "4x16GiB", "--dtype", "bf16", "--length", 100, "--json").json
    assert [stage["layers"] for stage in found["stages"]] == [8, 9, 9, 4]
    assert [stage["first_layer"] for stage in found["stages"]] == [0, 8, 17, 26]
    assert (found["slots"], found["stages"][-1]["logits_bytes"]) == (64, 38 * 250_880 * 64)
    assert found["parameters"] == 7_069_016_064
    assert found["kv_blocks"] * found["kv_block_tokens"] == found["kv_tokens"]
    assert [row["tokens"] for row in found["sequences"]] == [100, 256, 1024, 2048]
    assert found["sequences"][0]["count"] == found["kv_blocks"] // 7


def test_a_plan_is_a_table_for_people(here: Callable[..., Said]) -> None:
    """Each stage has a row, and what fits stands below; lines fit a narrow terminal."""
    said = here(*BLOOM, "--devices", "2x16GiB", "--slots", 256)
    assert said.code == 0
    assert "and 2.4 GB of cuda:1 for the logits of 256 sequences" in said.out
    assert "bigscience/bloom-7b1 in bfloat16 on 2 devices" in said.out
    assert "0-16, embedding" in said.out
    assert "17-29, head" in said.out
    assert "times the average" in said.out
    assert max(len(line.rstrip()) for line in said.out.splitlines()) <= 80


def test_ranks_share_every_layer(here: Callable[..., Said]) -> None:
    """With --tensor-parallel each device holds a part of all layers; heads that can't be shared are refused."""
    found = here(*BLOOM, "--devices", "4x6GiB", "--tensor-parallel", 4, "--json").json
    assert found["tensor_parallel"] == 4
    assert {(stage["layers"], stage["weight_bytes"]) for stage in found["stages"]} == {(30, found["weight_bytes"] // 4)}
    said = here(*BLOOM, "--devices", "2x10GiB", "--tensor-parallel", 2)
    assert "1/2 of all" in said.out
    assert "and up to 193 MB for the logits of 64 sequences" in said.out
    assert "copies of norms and biases" in said.out
    assert max(len(line.rstrip()) for line in said.out.splitlines()) <= 80
    refused = here(*BLOOM, "--devices", "3x10GiB", ENGINE__TENSOR_PARALLEL=3)
    assert (refused.code, len(refused.err.splitlines())) == (1, 1)
    assert "give it one of 1, 2, 4, 8, 16, 32" in refused.err


def test_devices_of_the_settings_are_planned_over(here: Callable[..., Said]) -> None:
    """Without --devices the plan is what a worker with these settings does."""
    found = here("plan", "--json", ENGINE__DEVICES="cpu,cpu").json
    assert [stage["device"] for stage in found["stages"]] == ["cpu", "cpu"]
    assert found["dtype"] == "float32"


def test_what_does_not_fit_is_1(here: Callable[..., Said]) -> None:
    """A model that is too large ends with 1 and one line: the missing bytes and the remedy."""
    said = here(*BLOOM, "--devices", "2x8GiB", "--dtype", "fp32")
    assert (said.code, said.out) == (1, "")
    assert "19,945,390,080 bytes are missing, 9,683,681,280 on cuda:0, 10,261,708,800 on cuda:1" in said.err
    assert said.err.startswith("farm: ")
    assert len(said.err.splitlines()) == 1


def test_a_folder_needs_no_weights(here: Callable[..., Said], tmp_path: Path) -> None:
    """A configuration is enough; without --devices the plan is for this machine."""
    (tmp_path / "config.json").write_text(
        '{"model_type": "bloom", "vocab_size": 1000, "hidden_size": 64, "n_layer": 3, "n_head": 4}'
    )
    found = here("plan", "--model", tmp_path, "--json").json
    assert sum(stage["layers"] for stage in found["stages"]) == 3


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("bloom-7b1", "did you mean 'bigscience/bloom-7b1'?"),
        ("./nowhere", "does not exist"),
        ("someone/no-such-bloom", "can't be had from the hub"),
    ],
)
def test_a_model_that_is_not_there_is_1(model: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads nowhere is refused with the way out."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = farm("plan", "--model", model, "--devices", "80GiB")
    assert said.code == 1
    assert hint in said.err
