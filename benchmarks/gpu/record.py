"""All figures of one run as a JSON object, kept after every part, so that a run that is cut off loses nothing."""

from __future__ import annotations

import json
import platform
import re
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers

from benchmarks import report
from benchmarks.gpu.device import about
from benchmarks.workload import Item
from workers.engine.checkpoint import BloomConfig
from workers.engine.presets import parameters

FOLDER = Path(__file__).parents[1] / "results"
SCRATCH = Path("build")
"""Where a run on a CPU is kept: it shows that the benchmark runs, and says nothing about GPUs."""

Record: TypeAlias = dict[str, Any]


def begin(name: str, config: BloomConfig, dtype: torch.dtype, kv_dtype: str, device: str, items: list[Item]) -> Record:
    """What is known before anything is measured. kv_dtype: as in FARM_ENGINE__KV_DTYPE."""
    shape = {"hidden": config.hidden, "layers": config.layers, "heads": config.heads, "vocab": config.vocab}
    return {
        "benchmark": "gpu",
        "model": {"name": name, **shape, "parameters": parameters(config)},
        "dtype": str(dtype).removeprefix("torch."),
        "kv_dtype": kv_dtype,
        "device": about(device),
        "workload": {
            "requests": len(items),
            "prompt_tokens": sum(len(item.prompt) for item in items),
            "tokens": sum(item.max_tokens for item in items),
        },
        "left_out": {},
        "commit": report.commit(),
        "machine": report.machine(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def judge(found: Record) -> None:
    """Add the ratios of what has been measured so far: to the floors, and to transformers."""
    floors = found.get("floors")
    if floors is None:
        return
    for row in found.get("decode", []):
        row["floor_ms"] = round(1000 * row["step_bytes"] / floors["read_bytes_per_s"], 4)
        row["share_of_floor"] = round(row["floor_ms"] / row["step_ms"], 3)
    if "prefill" in found:
        rate = found["prefill"]["operations"] / found["prefill"]["wall_s"]
        found["prefill"]["share_of_gemm"] = round(rate / floors["operations_per_s"], 3)
    ratios = found.setdefault("ratios", {})
    ours = next((row for row in found.get("decode", []) if row["batch"] == 1), None)
    if ours and "generate_one" in found:
        ratios["batch_1_to_generate"] = round(found["generate_one"]["step_ms"] / ours["step_ms"], 4)
    if "engine" in found and "generate_static_16" in found:
        static = found["generate_static_16"]["tokens_per_s"]
        ratios["workload_to_static_16"] = round(found["engine"]["tokens_per_s"] / static, 4)
    if "engine" in found and "farm" in found:
        ratios["farm_to_engine"] = round(found["farm"]["tokens_per_s"] / found["engine"]["tokens_per_s"], 4)


def path_of(found: Record) -> Path:
    """Where a record is kept unless somebody says otherwise: one for each model, device and KV cache's dtype."""
    device = found["device"]
    slug = re.sub(r"[^a-z0-9]+", "-", device["name"].lower()).strip("-")
    kept = "" if found["kv_dtype"] == "auto" else f"-{found['kv_dtype']}-kv"
    return (SCRATCH if device["kind"] == "cpu" else FOLDER) / f"gpu-{found['model']['name']}-{slug}{kept}.json"


def keep(found: Record, path: Path) -> None:
    """Write what there is so far, in place of what was; never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(found, indent=2) + "\n")
    fresh.replace(path)


def read_all(folder: Path = FOLDER) -> dict[Path, Record]:
    """All kept records of this benchmark that were measured on a GPU."""
    kept = {path: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return {
        path: one
        for path, one in kept.items()
        if one.get("benchmark") == "gpu" and one["device"]["kind"] == "cuda" and "decode" in one
    }
