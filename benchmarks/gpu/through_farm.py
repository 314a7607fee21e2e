"""The workload through the whole farm: client, Redis, Celery, one worker with the same model and settings."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.model import save_checkpoint
from benchmarks.workload import Item
from farm import Farm
from farm.local.stack import Stack
from farm.settings import EngineSettings, load_settings
from workers.engine.checkpoint import BloomConfig

START_S = 300.0
WARM_UP = 64
_SHARED = Path("/dev/shm")  # noqa: S108
"""Memory that is a folder: a checkpoint of many GB is written and read there fastest, if it has room."""
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def measure(config: BloomConfig, dtype: torch.dtype, device: str, engine: EngineSettings, items: list[Item]) -> Any:
    """Tokens per second over all requests. Writes a checkpoint, which takes as long as its bytes take."""
    need = 2 * dtype.itemsize * (config.layers * 12 * config.hidden**2 + config.vocab * config.hidden)
    roomy = _SHARED.is_dir() and shutil.disk_usage(_SHARED).free > need
    with tempfile.TemporaryDirectory(dir=_SHARED if roomy else None) as place:
        folder = save_checkpoint(Path(place) / "bloom", config, dtype, device)
        settings = load_settings(
            {},
            model={"id": str(folder), "dtype": _DTYPES[dtype]},
            engine=engine.model_dump(),
            local={"state_dir": str(Path(place) / "state")},
            logs={"level": "WARNING"},
        )
        with Stack(settings, workers=1, flower=False) as stack:
            assert stack.wait_ready(START_S), "the farm was asked to stop"
            with Farm(stack.farm_settings) as farm:
                _generate(farm, [Item([5, 6, 7], 4)] * WARM_UP)
                return _generate(farm, items)


def _generate(farm: Farm, items: list[Item]) -> dict[str, Any]:
    asked = [{"prompt": item.prompt, "max_tokens": item.max_tokens, "ignore_eos": True} for item in items]
    started = time.perf_counter()
    answers = list(farm.map(asked, window=len(asked)))
    wall_s = time.perf_counter() - started
    tokens = sum(answer.usage.completion_tokens for answer in answers)
    assert tokens == sum(item.max_tokens for item in items)
    return {
        "requests": len(items),
        "tokens": tokens,
        "wall_s": round(wall_s, 4),
        "tokens_per_s": round(tokens / wall_s, 1),
    }
