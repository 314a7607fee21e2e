"""What this machine could run: ``python -m workers.probe`` prints torch, GPUs, memory and the model's size as JSON.

``farm doctor`` asks it, because nothing in ``farm/`` may load torch. It downloads nothing and touches no GPU memory.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from farm.errors import FarmError, ModelRefused
from farm.settings import Settings, load_settings
from workers.engine.machine import free_bytes, usable_cores
from workers.engine.presets import PRESETS, parameters


def probe(settings: Settings) -> dict[str, Any]:
    """All facts; ``torch`` is None without it, ``model.weights`` None where the size is unknown."""
    return {"torch": _torch(), "cores": usable_cores(), "free_bytes": free_bytes(), "model": _model(settings)}


def _torch() -> dict[str, Any] | None:
    try:
        import torch  # here, because its absence is an answer
    except ImportError:
        return None
    gpus, trouble = [], None
    try:
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            gpus.append({"name": about.name, "bytes": about.total_memory})
    except RuntimeError as error:  # a driver that is too old is counted by NVML, and refused when it is asked
        gpus, trouble = [], str(error).partition("\n")[0]
    return {"version": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus, "trouble": trouble}


def _model(settings: Settings) -> dict[str, Any]:
    os.environ["HF_HUB_OFFLINE"] = "1"  # before anything of the hub is imported: look, don't download
    from workers.engine.checkpoint import PACKAGED, find_checkpoint
    from workers.engine.tokenizer import Tokenizer

    model_id = settings.model.id
    is_local = model_id in PACKAGED or Path(model_id).expanduser().is_dir()
    try:
        checkpoint = find_checkpoint(model_id, settings.model.revision)
        Tokenizer(checkpoint.tokenizer)
    except ModelRefused as error:
        published = PRESETS.get(model_id)
        # A hub id that is not in the cache is no fault: the first worker downloads it.
        is_wrong = is_local or Path(model_id).is_absolute() or model_id.count("/") > 1
        return {
            "is_here": False,
            "refused": str(error) if is_wrong else None,
            "weights": parameters(published) if published else None,
            "kv_per_token": 2 * published.layers * published.hidden if published else 0,
        }
    shape = checkpoint.config
    return {
        "is_here": True,
        "refused": None,
        "weights": parameters(shape),
        "kv_per_token": 2 * shape.layers * shape.hidden,
    }


def main() -> None:
    """Print the facts, or one line on stderr."""
    try:
        facts = probe(load_settings())
    except FarmError as error:
        sys.exit(str(error))
    sys.stdout.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
