"""A comparison as one JSON object: built from a session, kept in a file of a stable name, read back."""

from __future__ import annotations

import json
import math
import platform
import re
import statistics
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks import report
from benchmarks.compare import identity
from benchmarks.compare.contender import Request
from benchmarks.compare.plan import BASELINE, REFERENCE, Case
from benchmarks.compare.session import Entry, Session
from benchmarks.floor import Peaks, floor_s
from workers.engine.weights import expected_shapes

FOLDER = Path(__file__).parents[1] / "results"
LIBRARIES = ("torch", "transformers", "celery", "openvino-genai", "vllm")

Record: TypeAlias = dict[str, Any]


def record(
    case: Case, requests: list[Request], session: Session, peaks: Peaks, gap: Callable[[list[int]], float], command: str
) -> Record:
    """All figures of a session. ``gap``: see ``identity.compare``."""
    tokens = sum(wanted for _, wanted in requests)
    rows = {name: _row(entry, requests) for name, entry in session.entries.items()}
    base = rows.get(BASELINE)
    reference = session.entries.get(REFERENCE)
    for name, row in rows.items():
        if base:
            row["times_static_16"] = round(row["tokens_per_s"] / base["tokens_per_s"], 2)
        if reference and name != REFERENCE:
            row["identity"] = _identity(session.entries[name], reference, requests, gap)
    return {
        "benchmark": "compare",
        "model": {
            "name": case.name,
            "hidden": case.config.hidden,
            "layers": case.config.layers,
            "heads": case.config.heads,
            "vocab": case.config.vocab,
            "parameters": sum(math.prod(shape) for shape in expected_shapes(case.config).values()),
        },
        "workload": {
            "requests": len(requests),
            "prompt_tokens": sum(len(prompt) for prompt, _ in requests),
            "tokens": tokens,
            "distinct_tokens": len({token for output in reference.runs[0].outputs for token in output})
            if reference
            else None,
        },
        "contenders": rows,
        "left_out": session.left_out,
        "floor": _floor(case, session, peaks, requests),
        "command": command,
        "commit": report.commit(),
        "machine": report.machine(),
        "versions": _versions(),
    }


def _row(entry: Entry, requests: list[Request]) -> Record:
    """The figures of one contender: medians over its runs."""
    tokens = sum(wanted for _, wanted in requests[: entry.contender.requests])
    walls = [run.wall_s for run in entry.runs]
    wall_s = statistics.median(walls)
    peaks = [run.peak_bytes for run in entry.runs if run.peak_bytes is not None]
    return {
        "label": entry.contender.label,
        "precision": entry.contender.precision,
        "requests": len(requests[: entry.contender.requests]),
        "tokens_per_s": round(tokens / wall_s, 1),
        "wall_s": round(wall_s, 3),
        "wall_s_of_runs": [round(wall, 3) for wall in walls],
        "cpu_s": round(statistics.median(run.cpu_s for run in entry.runs), 2),
        "peak_bytes": max(peaks) if peaks else None,
        "idle_core_percent": round(100 * entry.idle_share, 1),
        **({"facts": entry.runs[-1].facts} if entry.runs[-1].facts else {}),
    }


def _identity(entry: Entry, reference: Entry, requests: list[Request], gap: Callable[[list[int]], float]) -> Record:
    outputs, expected = entry.runs[-1].outputs, reference.runs[-1].outputs
    count = len(outputs)
    found = asdict(identity.compare(requests[:count], expected[:count], outputs, gap))
    return {**found, "token_share": round(found["token_share"], 4)}


def _floor(case: Case, session: Session, peaks: Peaks, requests: list[Request]) -> Record:
    """The machine's peaks, and the least time that the engine's own steps can take on it in fp32."""
    found: Record = asdict(peaks)
    engine = session.entries.get("engine")
    if engine:
        steps = int(engine.runs[-1].facts["steps"])
        work = [(len(prompt), wanted) for prompt, wanted in requests]
        memory_s, compute_s = floor_s(case.config, peaks, steps, work)
        wall_s = statistics.median(run.wall_s for run in engine.runs)
        least_s = max(memory_s, compute_s)
        found |= {"steps": steps, "memory_s": round(memory_s, 3), "compute_s": round(compute_s, 3)}
        found |= {"engine_s": round(wall_s, 3), "reached": round(least_s / wall_s, 3)}
    return found


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def path_of(found: Record, folder: Path = FOLDER) -> Path:
    """Where a record is kept: one file for each model and kind of machine."""
    machine = found["machine"]
    slug = re.sub(r"[^a-z0-9]+", "-", f"{machine['cpu']} {machine['cores']} cores".lower()).strip("-")
    return folder / f"{found['model']['name']}-{slug}.json"


def write(found: Record, folder: Path = FOLDER) -> Path:
    """Keep a record in place of the last one of its name."""
    path = path_of(found, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
    return path


def read_all(folder: Path = FOLDER) -> dict[Path, Record]:
    """All records of this benchmark that are kept, largest workload first."""
    kept = {path: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    found = {path: one for path, one in kept.items() if one.get("benchmark") == "compare"}
    return dict(sorted(found.items(), key=lambda item: -item[1]["workload"]["requests"]))
