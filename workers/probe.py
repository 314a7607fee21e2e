"""What this machine could run: ``python -m workers.probe`` prints torch, GPUs and what the model takes as JSON.

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
from workers.engine.checkpoint import PACKAGED, BloomConfig, find_checkpoint
from workers.engine.machine import free_bytes, usable_cores
from workers.engine.presets import PRESETS


def probe(settings: Settings) -> dict[str, Any]:
    """All facts; ``torch`` is None without it, ``model.sizes`` None where the shape is unknown."""
    torch = _torch()
    return {"torch": torch, "cores": usable_cores(), "model": _model(settings, torch)}


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


def _model(settings: Settings, torch: dict[str, Any] | None) -> dict[str, Any]:
    os.environ["HF_HUB_OFFLINE"] = "1"  # before anything of the hub is imported: look, don't download
    from workers.engine.tokenizer import Tokenizer

    model_id = settings.model.id
    is_local = model_id in PACKAGED or Path(model_id).expanduser().is_dir()
    try:
        checkpoint = find_checkpoint(model_id, settings.model.revision)
        Tokenizer(checkpoint.tokenizer)
    except ModelRefused as error:
        # A hub id that is not in the cache is no fault: the first worker downloads it.
        is_wrong = is_local or Path(model_id).is_absolute() or model_id.count("/") > 1
        is_here, refused, shape = False, str(error) if is_wrong else None, PRESETS.get(model_id)
    else:
        is_here, refused, shape = True, None, checkpoint.config
    sizes = None if refused or shape is None or torch is None else _sizes(shape, settings, torch["gpus"])
    return {"is_here": is_here, "refused": refused, "sizes": sizes}


def _sizes(shape: BloomConfig, settings: Settings, gpus: list[dict[str, Any]]) -> dict[str, Any]:
    """Bytes that a worker's plan takes, and those of the devices that it is for; or ``lacks``, why there is no plan.

    A GPU counts with all that it has, and not with what is free: a worker that runs may hold it.
    """
    from workers.engine.devices import named_devices  # here, because these load torch, whose absence is an answer
    from workers.engine.kv.arena import MIN_BLOCK
    from workers.engine.plan_by_settings import plan_by_settings
    from workers.engine.shard_plan import Device

    engine = settings.engine
    room = {f"cuda:{index}": int(gpu["bytes"]) for index, gpu in enumerate(gpus)} or {"cpu": free_bytes()}
    try:
        if engine.devices:
            devices = named_devices(engine.devices, {"cpu": free_bytes(), **room}.__getitem__)
        else:
            devices = [Device(name, count) for name, count in room.items()]
        on_cpu = devices[0].name == "cpu"
        # As a worker has it: a CPU without room for whole sequences of the longest context serves shorter ones.
        context, reserve = (MIN_BLOCK, 0) if on_cpu else (engine.max_context, None)
        plan = plan_by_settings(shape, settings.model, engine, devices, context=context, reserve=reserve)
    except ModelRefused as error:
        return {"lacks": str(error)}
    return {
        "lacks": None,
        "dtype": plan.dtype,
        "weight_bytes": plan.weight_bytes,
        "sequence_bytes": plan.kv_token_bytes * engine.max_context,
        "room_bytes": sum(device.bytes for device in devices),
        "gpus": 0 if on_cpu else len({device.name for device in devices}),
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
