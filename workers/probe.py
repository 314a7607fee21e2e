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

# Layers and hidden size of the published Blooms, for those that are not on this machine yet.
PUBLISHED = {
    "bigscience/bloom-560m": (24, 1024),
    "bigscience/bloom-1b1": (24, 1536),
    "bigscience/bloom-1b7": (24, 2048),
    "bigscience/bloom-3b": (30, 2560),
    "bigscience/bloom-7b1": (30, 4096),
    "bigscience/bloom": (70, 14336),
}
PUBLISHED_VOCAB = 250_880


def probe(settings: Settings) -> dict[str, Any]:
    """All facts; ``torch`` is None without it, ``model.weights`` None where the size is unknown."""
    return {"torch": _torch(), "cores": usable_cores(), "free_bytes": free_bytes(), "model": _model(settings)}


def parameters(layers: int, hidden: int, vocab: int) -> int:
    """Weights of a Bloom with a tied head: embedding, its norm, blocks of 12 h^2 + 13 h, the last norm."""
    return vocab * hidden + 2 * hidden + layers * (12 * hidden * hidden + 13 * hidden) + 2 * hidden


def _torch() -> dict[str, Any] | None:
    try:
        import torch  # here, because its absence is an answer
    except ImportError:
        return None
    gpus = []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        gpus.append({"name": about.name, "bytes": about.total_memory})
    return {"version": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus}


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
        layers, hidden = PUBLISHED.get(model_id, (0, 0))
        weights = parameters(layers, hidden, PUBLISHED_VOCAB) if layers else None
        # A hub id that is not in the cache is no fault: the first worker downloads it.
        is_wrong = is_local or Path(model_id).is_absolute() or model_id.count("/") > 1
        return {
            "is_here": False,
            "refused": str(error) if is_wrong else None,
            "weights": weights,
            "kv_per_token": 2 * layers * hidden,
        }
    shape = checkpoint.config
    return {
        "is_here": True,
        "refused": None,
        "weights": parameters(shape.layers, shape.hidden, shape.vocab),
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
