"""The plan that the settings ask for: by stages or by ranks, in their dtype.

One for the engine, ``farm plan`` and ``farm doctor``, so that they say the same of a model.
"""

from __future__ import annotations

from collections.abc import Sequence

from farm.settings import EngineSettings, ModelSettings
from workers.engine.checkpoint import BloomConfig
from workers.engine.planner import plan_shards
from workers.engine.shard_plan import Device, ShardPlan
from workers.engine.tensor_parallel.plan import check_shares, plan_ranks, rank_devices


def plan_by_settings(
    config: BloomConfig,
    model: ModelSettings,
    engine: EngineSettings,
    devices: Sequence[Device],
    *,
    context: int,
    reserve: int | None = None,
) -> ShardPlan:
    """Plan a Bloom over devices. A dtype of auto is float32 on a CPU and bfloat16 on GPUs.

    context, reserve: as in ``planner.plan_shards``.
    Raises ModelRefused for ranks that can't share the model; ModelTooLarge, which names the missing bytes.
    """
    dtype = model.dtype
    if dtype == "auto":
        dtype = "float32" if all(device.name == "cpu" for device in devices) else "bfloat16"
    if engine.tensor_parallel > 1:
        check_shares(config, engine.tensor_parallel, engine.quantization, engine.kv_dtype)
        ranks = rank_devices(list(devices), engine.tensor_parallel)
        return plan_ranks(config, dtype, ranks, context=context, reserve=reserve)
    return plan_shards(
        config,
        dtype,
        devices,
        context=context,
        reserve=reserve,
        quantization=engine.quantization,
        kv_dtype=engine.kv_dtype,
    )
