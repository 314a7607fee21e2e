"""Plan a Bloom over ranks: an equal part of every layer on each device, and the room that it leaves.

The plan has the form of one by stages (``ShardPlan``), each "stage" a rank that holds its part of all layers.
"""

from __future__ import annotations

from collections.abc import Sequence

from farm.errors import ModelRefused
from workers.engine.checkpoint import BloomConfig
from workers.engine.kv.paged import PAGE
from workers.engine.module_bytes import layer_token_bytes
from workers.engine.presets import parameters
from workers.engine.reserve import gathered_bytes, reserved, with_reserve
from workers.engine.shard_plan import Device, ModelTooLarge, ShardPlan, StagePlan
from workers.engine.tensor_parallel.cut import Rank


def check_shares(config: BloomConfig, ranks: int, quantization: str | None, kv_dtype: str = "auto") -> None:
    """Raise ModelRefused for what ranks can't share: heads that don't come out even, and numbers in 8 bits."""
    if config.heads % ranks:
        even = [str(count) for count in range(1, config.heads + 1) if config.heads % count == 0]
        raise ModelRefused(
            f"{config.heads} attention heads can't be shared evenly by FARM_ENGINE__TENSOR_PARALLEL={ranks} ranks; "
            f"give it one of {', '.join(even)}"
        )
    if quantization is not None:
        raise ModelRefused(
            f"FARM_ENGINE__QUANTIZATION={quantization} rounds whole rows, of which each of "
            f"FARM_ENGINE__TENSOR_PARALLEL={ranks} ranks holds a part: texts would depend on the number of ranks; "
            "unset one of the two"
        )
    if kv_dtype != "auto":
        raise ModelRefused(
            f"ranks keep keys and values in the model's dtype: unset FARM_ENGINE__KV_DTYPE={kv_dtype} or "
            f"FARM_ENGINE__TENSOR_PARALLEL={ranks}"
        )


def rank_devices(devices: list[Device], ranks: int) -> list[Device]:
    """The device of each rank; a CPU alone is shared out. Raises ModelRefused unless there are as many as ranks."""
    if len(devices) == 1 and devices[0].name == "cpu":
        return [Device("cpu", devices[0].bytes // ranks)] * ranks
    if len(devices) != ranks:
        raise ModelRefused(
            f"FARM_ENGINE__TENSOR_PARALLEL={ranks} takes {ranks} devices, one for each rank, and there are "
            f"{len(devices)}: {', '.join(device.name for device in devices)}; name {ranks} in FARM_ENGINE__DEVICES "
            "(layers are not cut into stages as well)"
        )
    return devices


def plan_ranks(
    config: BloomConfig,
    dtype: str,
    devices: Sequence[Device],
    *,
    context: int = 2048,
    slots: int = 64,
    reserve: int | None = None,
) -> ShardPlan:
    """Plan a Bloom over one rank for each device.

    dtype, context, slots and reserve: as in ``planner.plan_shards``.
    Raises ModelRefused for heads that can't be shared, ModelTooLarge with the bytes missing on each device.
    """
    count = len(devices)
    check_shares(config, count, None)
    token_bytes = config.layers * layer_token_bytes(config, dtype) // count
    one_sequence = -(-context // PAGE) * PAGE * token_bytes
    stages, missing = [], []
    for number, device in enumerate(devices):
        rank = Rank(number, count)
        held, logits = rank.held_bytes(config, dtype), gathered_bytes(config.vocab, slots, number, count)
        room = max(0, device.bytes - reserved(device.bytes, reserve)) - held - logits
        need = with_reserve(held + logits + one_sequence, reserve)
        missing.append(need - device.bytes if room < one_sequence else 0)
        stages.append(
            StagePlan(
                device=device,
                layers=range(config.layers),
                has_embedding=True,
                has_head=True,
                weight_bytes=held,
                step_bytes=rank.read_bytes(config, dtype),
                logits_bytes=logits,
                kv_bytes=room,
                kv_tokens=room // token_bytes // PAGE * PAGE,
            )
        )
    if any(missing):
        raise ModelTooLarge(
            f"a Bloom of {parameters(config):,} parameters in {dtype} does not fit {count} ranks with one sequence of "
            f"{context:,} tokens: up to {max(missing):,} bytes are missing on each; use more ranks "
            "(FARM_ENGINE__TENSOR_PARALLEL), larger devices or a shorter context (FARM_ENGINE__MAX_CONTEXT)",
            missing,
        )
    return ShardPlan(tuple(stages), (), config, dtype, context, ranks=count)
