"""``python -m workers.plan``: a model over devices, as JSON. ``farm plan`` asks it, as ``farm/`` may not load torch.

Model, dtype and context come from FARM_ settings. Reads a configuration and no weights; this machine's own GPUs are
asked for their free memory, which takes some of it for that moment.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from farm.errors import FarmError, ModelRefused
from farm.settings import ModelSettings, load_settings
from workers.engine.checkpoint import BloomConfig, find_config
from workers.engine.devices import named_devices, own_devices
from workers.engine.kv.paged import PAGE
from workers.engine.module_bytes import bytes_of_shapes
from workers.engine.plan_by_settings import plan_by_settings
from workers.engine.planner import reserved
from workers.engine.presets import PRESETS, parameters
from workers.engine.shard_plan import Device, ShardPlan, StagePlan
from workers.exits import EXIT_REFUSED


def config_of(model: ModelSettings) -> BloomConfig:
    """The model's shape: of a folder, a published Bloom, or from the hub. Raises ModelRefused."""
    if not Path(model.id).expanduser().is_dir():
        if model.id in PRESETS:
            return PRESETS[model.id]
        if f"bigscience/{model.id}" in PRESETS:
            raise ModelRefused(f"{model.id} is no folder here; did you mean 'bigscience/{model.id}'?")
    return find_config(model.id, model.revision)


def as_json(plan: ShardPlan, reserve: int | None, lengths: list[int]) -> dict[str, Any]:
    """The plan and what follows from it; every ``bytes`` is a count."""
    return {
        "parameters": parameters(plan.config),
        "dtype": plan.dtype,
        "context": plan.context,
        "tensor_parallel": plan.ranks,
        "stages": [_stage(stage, reserve) for stage in plan.stages],
        "idle": [device.name for device in plan.idle],
        "quantization": plan.quantization,
        "kv_dtype": plan.kv_dtype,
        "model_bytes": _whole(plan),
        "weight_bytes": plan.weight_bytes,
        "step_bytes": plan.step_bytes,
        "largest_step_bytes": plan.largest_step_bytes,
        "filled_step_bytes": plan.filled_step_bytes,
        "imbalance": round(plan.imbalance, 3),
        "kv_token_bytes": plan.kv_token_bytes,
        "kv_block_tokens": PAGE,
        "kv_blocks": plan.kv_blocks,
        "kv_tokens": plan.kv_tokens,
        "sequences": [{"tokens": tokens, "count": plan.sequences(tokens)} for tokens in lengths],
    }


def _whole(plan: ShardPlan) -> int:
    """Bytes of the weights on one device."""
    parts = bytes_of_shapes(plan.config, plan.dtype, plan.quantization)
    return parts.held(range(plan.config.layers), has_embedding=True, has_head=True)


def _stage(stage: StagePlan, reserve: int | None) -> dict[str, Any]:
    return {
        "device": stage.device.name,
        "device_bytes": stage.device.bytes,
        "reserve_bytes": reserved(stage.device.bytes, reserve),
        "first_layer": stage.layers.start if stage.layers else None,
        "layers": len(stage.layers),
        "has_embedding": stage.has_embedding,
        "has_head": stage.has_head,
        "weight_bytes": stage.weight_bytes,
        "step_bytes": stage.step_bytes,
        "kv_bytes": stage.kv_bytes,
        "kv_tokens": stage.kv_tokens,
    }


def main() -> None:
    """Print the plan. Exits with 78 and a line on stderr for a model that is refused or does not fit."""
    parser = argparse.ArgumentParser(prog="python -m workers.plan", description="Plan a model over devices.")
    parser.add_argument("--devices", help="bytes of each, with commas between them; those of the settings unless given")
    parser.add_argument("--reserve", type=int, help="bytes kept free on each device")
    parser.add_argument("--length", type=int, action="append", default=[], help="tokens of sequences to count")
    args = parser.parse_args()
    try:
        settings = load_settings()
        config = config_of(settings.model)
        if args.devices is None:
            devices = named_devices(settings.engine.devices) if settings.engine.devices else own_devices()
        else:
            devices = [Device(f"cuda:{index}", int(size)) for index, size in enumerate(args.devices.split(","))]
        plan = plan_by_settings(
            config,
            settings.model,
            settings.engine,
            devices,
            context=settings.engine.max_context,
            reserve=args.reserve,
        )
    except FarmError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(EXIT_REFUSED) from None
    found = {"model": settings.model.id, **as_json(plan, args.reserve, args.length)}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
