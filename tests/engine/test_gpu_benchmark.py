"""The GPU's benchmark runs the same code on a CPU, and says nothing that it did not measure on a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import device, page, parts
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.baseline import run_static
from benchmarks.gpu.model import checkpoint_without_weights, open_random, save_checkpoint, transformers_model
from benchmarks.gpu.record import judge, keep, path_of
from benchmarks.workload import Item
from farm.settings import EngineSettings, ModelSettings
from tests.engine.driving import bloom, one
from workers.engine.bloom import Bloom
from workers.engine.checkpoint import BloomConfig
from workers.engine.engine import Engine

SHAPE = BloomConfig(vocab=600, hidden=80, layers=3, heads=5)
SMALLEST = ["--device", "cpu", "--model", "small", "--batch", "1", "3", "--context", "24", "--steps", "4"]
SMALLEST += ["--prefill", "32", "--requests", "2"]
FLOORS = {"read_bytes_per_s": 1e12, "operations_per_s": 2e14}


def _record(**more: Any) -> dict[str, Any]:
    """A made-up record of a GPU that there is not."""
    row = {"batch": 1, "context": 512, "step_ms": 20.0, "tokens_per_s": 50.0, "step_bytes": 15_000_000_000}
    return {
        "benchmark": "gpu",
        "model": {"name": "7b1", "parameters": 7_069_016_064},
        "dtype": "bfloat16",
        "device": {"kind": "cuda", "name": "Made-up GPU", "bytes": 80 * 10**9, "cuda": "13.0"},
        "versions": {"torch": "2.13.0"},
        "commit": "0000000",
        "left_out": {"farm": "celery not installed"},
        "decode": [row],
        **more,
    }


def test_it_runs_without_celery_and_redis(tmp_path: Path) -> None:
    """All parts but the farm's, the last line JSON, and the same kept in a file."""
    out = tmp_path / "found.json"
    blocked = "import sys; sys.modules.update(dict.fromkeys(['celery', 'kombu', 'redis', 'accelerate']));"
    options = [*SMALLEST, "--kv-dtype", "int8", "--out", str(out)]
    code = f"{blocked} from benchmarks.gpu.__main__ import main; main({options!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert json.loads(out.read_text()) == found
    assert found["kv_dtype"] == "int8"
    assert [row["batch"] for row in found["decode"]] == [1, 3]
    assert all(row["share_of_floor"] > 0 and row["preemptions"] == 0 for row in found["decode"])
    assert found["engine"]["tokens"] == found["generate_static_16"]["tokens"] == found["workload"]["tokens"]
    assert {"floors", "prefill", "generate_one"} <= found.keys()
    assert found["ratios"]["workload_to_static_16"] > 0
    assert set(found["ratios"]) == {"batch_1_to_generate", "workload_to_static_16"}
    assert found["left_out"] == {}


def test_keys_and_values_in_8_bits_are_told_apart() -> None:
    """A record of --kv-dtype int8 has a file of its own, says so in the docs, and its floor counts fewer bytes."""
    plain, small = (path_of(_record(kv_dtype=name)).name for name in ("auto", "int8"))
    assert (plain, small) == ("gpu-7b1-made-up-gpu.json", "gpu-7b1-made-up-gpu-int8-kv.json")
    exact, rounded = (device.step_bytes(SHAPE, "bfloat16", name, 4, 100) for name in ("auto", "int8"))
    assert exact - rounded == 4 * 100 * SHAPE.layers * 2 * (SHAPE.hidden - 4 * SHAPE.heads)
    said = page.section(_record(kv_dtype="int8"), "chart.svg")
    assert "in bfloat16, int8 keys and values, on Made-up GPU" in said
    assert "python -m benchmarks.gpu --model 7b1 --kv-dtype int8" in said


def test_a_gpu_that_is_missing_is_one_line_and_2(capsys: pytest.CaptureFixture[str]) -> None:
    """It says what is missing and measures nothing."""
    with pytest.raises(SystemExit) as ended:
        main(["--device", "cuda:97"])
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert said.err.startswith("benchmarks.gpu: cuda:97 can't be measured: ")
    assert len(said.err.splitlines()) == 1


def test_a_part_for_which_there_is_no_time_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its name and the reason, and the run ends well."""
    main([*SMALLEST, "--budget-s", "0", "--out", str(tmp_path / "found.json")])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found["left_out"]) == {"floors", "the engine's model", "transformers' model"}
    assert "decode" not in found


def test_what_is_measured_is_kept_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is cut off in its prefill has its floors and all of decode in its file."""

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(parts, "prefill", cut_off)
    out = tmp_path / "found.json"
    with pytest.raises(KeyboardInterrupt):
        main([*SMALLEST, "--out", str(out)])
    found = json.loads(out.read_text())
    assert [row["batch"] for row in found["decode"]] == [1, 3]
    assert "floors" in found
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


def test_engine_transformers_and_checkpoint_have_the_same_random_weights(tmp_path: Path) -> None:
    """One model, made three times: its tokens are the same, and they vary."""
    checkpoint = checkpoint_without_weights(tmp_path / "shape", SHAPE)
    settings = EngineSettings(devices=["cpu"], threads=1, max_slots=2, max_context=128, kv_layout="paged")
    ours = Bloom(ModelSettings(id=str(tmp_path / "shape"), dtype="float32"), settings, checkpoint, open_random)
    prompt = list(range(40, 70))
    [wanted] = run_static(transformers_model(SHAPE, torch.float32, "cpu"), [Item(prompt, 24)], 1)
    assert one(Engine(ours, 64), prompt, max_tokens=24, ignore_eos=True).ids == wanted
    folder = save_checkpoint(tmp_path / "saved", SHAPE, torch.float32, "cpu")
    assert one(Engine(bloom(folder), 64), prompt, max_tokens=24, ignore_eos=True).ids == wanted
    assert len(set(wanted)) > 8


def test_shares_and_ratios_follow_from_what_was_measured() -> None:
    """The floor of a step is the bytes that it reads by the device's rate of reading; a ratio needs both sides."""
    found = _record(floors=FLOORS, prefill={"operations": 1e13, "wall_s": 0.1}, generate_one={"step_ms": 50.0})
    judge(found)
    assert found["decode"][0]["floor_ms"] == 15.0
    assert found["decode"][0]["share_of_floor"] == 0.75
    assert found["prefill"]["share_of_gemm"] == 0.5
    assert found["ratios"] == {"batch_1_to_generate": 2.5}


def test_docs_hold_figures_of_gpus_alone(tmp_path: Path) -> None:
    """A run on a CPU writes none; a GPU's has a table, a chart that is XML, and what was left out."""
    docs, folder = tmp_path / "page.md", tmp_path / "results"
    docs.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    cpu = _record(device={"kind": "cpu", "name": "CPU", "bytes": None, "cuda": None})
    keep(cpu, folder / "gpu-small-cpu.json")
    page.write_docs(docs, folder)
    assert docs.read_text() == f"before\n{page.BEGIN}\n\n{page.NONE_YET}\n\n{page.END}\nafter\n"
    found = _record(floors=FLOORS)
    judge(found)
    keep(found, folder / "gpu-7b1-made-up.json")
    page.write_docs(docs, folder)
    assert "| 1 | 512 | 20.00 | 50 | 15.00 | 75 % |" in docs.read_text()
    assert "Not measured: farm (celery not installed)." in docs.read_text()
    assert "old" not in docs.read_text()
    drawn = ElementTree.fromstring((folder / "gpu-7b1-made-up.svg").read_text())  # noqa: S314
    assert "75 % of the floor" in "".join(drawn.itertext())


def test_the_repository_has_no_figure_of_a_gpu_that_is_no_record() -> None:
    """What docs/benchmarks.md says of GPUs is what the kept records say."""
    text = page.DOCS.read_text()
    between = text.partition(page.BEGIN)[2].partition(page.END)[0].strip()
    kept = page.read_all()
    assert (between == page.NONE_YET) == (not kept)
    assert all(found["device"]["name"] in between for found in kept.values())


def test_the_rate_of_reading_counts_what_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of the buffer, by the time in which something is made of all of it that is one number."""
    monkeypatch.setattr(device, "_best_s", lambda _, call: {1: 0.5}.get(call().numel(), 2.0))
    monkeypatch.setattr(device, "_READ_BYTES", {"cpu": 1 << 20})
    found = device.measure_floors("cpu", torch.float32)
    assert found["read_bytes_per_s"] == (1 << 20) / 0.5
    assert found["operations_per_s"] == 2 * 1024**3 / 2.0
