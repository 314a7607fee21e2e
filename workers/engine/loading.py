"""From a checkpoint to shards: where each stage goes, how much memory keys and values get, and which kernels compute.

A CPU in float32 is served by the native library where that loads, else by torch; GPUs in pages, as ``gpu`` does it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from farm.errors import ModelRefused
from farm.settings import EngineSettings, ModelSettings
from workers.engine.checkpoint import BloomConfig, Checkpoint
from workers.engine.devices import held_by_others, named_devices, own_devices
from workers.engine.gpu.attention import TorchAttention
from workers.engine.gpu.selftest import best_attention
from workers.engine.gpu.shard import DeviceShard
from workers.engine.kv.arena import MIN_BLOCK, block_size
from workers.engine.kv.cache import KVCache
from workers.engine.kv.contiguous import ContiguousKV
from workers.engine.kv.eight_bits import KV_DTYPES, EightBitPages
from workers.engine.kv.manager import KVManager
from workers.engine.kv.paged import PAGE, PagedKV
from workers.engine.kv.pages import PageBuffers
from workers.engine.machine import free_bytes
from workers.engine.native import library
from workers.engine.native.stage import NativeStage
from workers.engine.pipeline import Shard
from workers.engine.plan_by_settings import plan_by_settings
from workers.engine.shard import ContiguousShard, NativeShard, PagedShard
from workers.engine.shard_plan import ModelTooLarge, ShardPlan, StagePlan
from workers.engine.stage import Stage
from workers.engine.tensor_parallel.loading import load_ranks
from workers.engine.weights import OpenWeights, Weights

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model goes, decided before a weight is read."""

    plan: ShardPlan
    dtype: torch.dtype
    is_paged: bool
    is_native: bool
    kv_tokens: int
    kv_dtype: str = "auto"
    is_launched: bool = False
    """Whether steps are launched by ``gpu.runner``,"""
    lookahead: int = 0
    """and how many of them ahead of the tokens that they follow on."""

    def memory(self, caching: bool) -> KVManager:
        """The bookkeeping of an empty KV cache."""
        return PagedKV(self.kv_tokens, caching) if self.is_paged else ContiguousKV(self.kv_tokens, caching)

    def kernels(self, shards: list[DeviceShard]) -> str:
        """What computes, for people: as "native on cpu" or "triton on cuda:0". shards: those that are launched."""
        names = sorted({shard.kernels for shard in shards}) or ["native" if self.is_native else "torch"]
        devices = ", ".join(stage.device.name for stage in self.plan.stages)
        ranks = f" in {self.plan.ranks} ranks" if self.plan.ranks > 1 else ""
        return f"{' and '.join(names)} on {devices}{ranks}"


def place(config: BloomConfig, model: ModelSettings, engine: EngineSettings) -> Placement:
    """Decide. Raises ModelRefused for devices that are not here, and for memory that is not there."""
    devices = named_devices(engine.devices) if engine.devices else own_devices()
    in_ranks = engine.tensor_parallel > 1
    on_cpu = all(device.name == "cpu" for device in devices)
    if not on_cpu and any(device.name == "cpu" for device in devices):
        raise ModelRefused("FARM_ENGINE__DEVICES names the CPU beside GPUs; name devices of one kind")
    # A CPU that has no room for whole sequences of the longest context serves shorter ones.
    context = MIN_BLOCK if on_cpu else engine.max_context
    reserve = 0 if on_cpu else None
    try:
        plan = plan_by_settings(config, model, engine, devices, context=context, reserve=reserve)
    except ModelTooLarge as error:
        held = held_by_others(devices)
        raise (ModelTooLarge(f"{error}; {held}", error.missing) if held else error) from None
    dtype = _DTYPES[plan.dtype]
    kv_tokens = _cpu_kv_tokens(plan, engine) if on_cpu else _gpu_kv_tokens(plan, engine)
    wants_pages = not on_cpu or engine.kv_dtype != "auto"
    is_paged = engine.kv_layout == "paged" or (engine.kv_layout == "auto" and wants_pages)
    if not on_cpu and not is_paged:
        raise ModelRefused("FARM_ENGINE__KV_LAYOUT=contiguous is for CPUs; unset it on a machine with GPUs")
    if wants_pages and not is_paged:
        raise ModelRefused(
            f"FARM_ENGINE__KV_DTYPE={engine.kv_dtype} lies in pages, and FARM_ENGINE__KV_LAYOUT=contiguous has none; "
            "unset one of the two"
        )
    # Ranks compute in step, and wait for each other anyway; 8-bit pages are torch's.
    could_be_launched = is_paged and not in_ranks and engine.kv_dtype == "auto"
    is_launched = could_be_launched and (not on_cpu or bool(engine.lookahead))
    if engine.lookahead and not is_launched:
        raise ModelRefused(
            "FARM_ENGINE__LOOKAHEAD=1 needs plain pages and no ranks; set FARM_ENGINE__KV_LAYOUT=paged, leave "
            "FARM_ENGINE__KV_DTYPE and FARM_ENGINE__TENSOR_PARALLEL alone, or unset it"
        )
    lookahead = (1 if engine.lookahead is None else engine.lookahead) if is_launched else 0
    could_be_native = on_cpu and not is_paged and engine.native == "auto" and dtype is torch.float32
    # The library computes a whole stage in one call, with no sum over ranks inside.
    could_be_native &= not in_ranks
    # The library takes bytes by fours.
    could_be_native &= engine.quantization is None or config.hidden % 4 == 0
    is_native = could_be_native and library.load() is not None
    return Placement(plan, dtype, is_paged, is_native, kv_tokens, engine.kv_dtype, is_launched, lookahead)


def load_shards(
    checkpoint: Checkpoint,
    placement: Placement,
    engine: EngineSettings,
    threads: int,
    open_weights: OpenWeights = Weights,
) -> list[Shard]:
    """Load each stage straight to its device. ``threads`` are shared out. Raises ModelRefused for damaged weights."""
    stages = placement.plan.stages
    if placement.plan.ranks > 1:
        ranks = load_ranks(
            checkpoint,
            placement.plan,
            is_paged=placement.is_paged,
            kv_tokens=placement.kv_tokens,
            slots=engine.max_slots,
            threads=threads,
            timeout_s=engine.load_timeout_s,
        )
        return [ranks]
    share = max(1, threads // len(stages))
    return [_shard(checkpoint, placement, stage, engine, share, open_weights) for stage in stages]


def load_device_shards(
    checkpoint: Checkpoint, placement: Placement, engine: EngineSettings, open_weights: OpenWeights = Weights
) -> list[DeviceShard]:
    """Load each stage straight to its device, warmed up. Raises ModelRefused for damaged weights."""
    config, context = checkpoint.config, min(engine.max_context, placement.kv_tokens)
    if (name := placement.plan.stages[0].device.name) != "cpu":
        torch.cuda.set_device(name)  # what no lane is entered for would take memory of the first GPU
    shards = []
    for plan in placement.plan.stages:
        device = torch.device(plan.device.name)
        heads, head_dim, dtype = config.heads, config.head_dim, placement.dtype
        with open_weights(checkpoint, dtype, plan.device.name) as weights:
            first, last = plan.has_embedding, plan.has_head
            stage = Stage(weights, plan.layers, first=first, last=last, quantization=engine.quantization)
        # One page more, which padding rows write to.
        pages = PageBuffers(len(plan.layers), heads, head_dim, placement.kv_tokens + PAGE, dtype, device)
        use_triton = device.type == "cuda" and engine.native == "auto"
        attention = best_attention(device, heads, head_dim, dtype) if use_triton else TorchAttention()
        shard = DeviceShard(stage, pages, attention, engine.max_slots, context)
        shard.warm_up()
        shards.append(shard)
    return shards


def _shard(
    checkpoint: Checkpoint,
    placement: Placement,
    stage: StagePlan,
    engine: EngineSettings,
    threads: int,
    open_weights: OpenWeights,
) -> Shard:
    config, dtype = checkpoint.config, placement.dtype
    sizes = (len(stage.layers), config.heads, config.head_dim, placement.kv_tokens, dtype)
    first, last = stage.has_embedding, stage.has_head
    with open_weights(checkpoint, dtype, stage.device.name) as weights:
        if placement.is_native:
            kernels = NativeStage(
                weights, stage.layers, first=first, last=last, threads=threads, quantization=engine.quantization
            )
            return NativeShard(kernels, KVCache(*sizes))
        plain = Stage(weights, stage.layers, first=first, last=last, quantization=engine.quantization)
    if placement.is_paged:
        device = torch.device(stage.device.name)
        if placement.kv_dtype != "auto":
            return PagedShard(plain, EightBitPages(*sizes, device, KV_DTYPES[placement.kv_dtype]))
        return PagedShard(plain, PageBuffers(*sizes, device))
    plain.warm_up(engine.max_slots)
    return ContiguousShard(plain, KVCache(*sizes))


def _cpu_kv_tokens(plan: ShardPlan, engine: EngineSettings) -> int:
    """Whole blocks for half of the slots at full length, up to FARM_ENGINE__KV_BYTES or a quarter of what is free.

    Raises ModelRefused if the setting asks for more than the weights leave, or if that is less than a block.
    """
    free = free_bytes()
    room = max(0, free - plan.weight_bytes)
    if engine.kv_bytes is not None and engine.kv_bytes > room:
        raise _too_much(engine.kv_bytes, room)
    limit = min(room, free // 4) if engine.kv_bytes is None else engine.kv_bytes
    # Few sequences get so long, and memory that is never used would be taken from others.
    wanted = max(1, engine.max_slots // 2) * block_size(engine.max_context)
    tokens = min(wanted, limit // plan.kv_token_bytes) // MIN_BLOCK * MIN_BLOCK
    if not tokens:
        raise _too_little(limit, MIN_BLOCK, plan.kv_token_bytes)
    return tokens


def _gpu_kv_tokens(plan: ShardPlan, engine: EngineSettings) -> int:
    """Whole pages for what all slots need, up to FARM_ENGINE__KV_BYTES and what the devices hold.

    Raises ModelRefused if the setting asks for more than there is, or for less than a page.
    """
    wanted = engine.max_slots * -(-engine.max_context // PAGE) * PAGE
    if engine.kv_bytes is None:
        return min(plan.kv_tokens, wanted)
    room = plan.kv_tokens * plan.kv_token_bytes
    if engine.kv_bytes > room:
        raise _too_much(engine.kv_bytes, room)
    tokens = min(wanted, engine.kv_bytes // plan.kv_token_bytes) // PAGE * PAGE
    if not tokens:
        raise _too_little(engine.kv_bytes, PAGE, plan.kv_token_bytes)
    return tokens


def _too_much(asked: int, room: int) -> ModelRefused:
    return ModelRefused(
        f"FARM_ENGINE__KV_BYTES asks for {asked:,} bytes for keys and values, and the weights leave {room:,}; "
        f"lower it by {asked - room:,} or unset it"
    )


def _too_little(limit: int, tokens: int, token_bytes: int) -> ModelRefused:
    return ModelRefused(
        f"{limit:,} bytes for keys and values hold no block of {tokens} tokens at {token_bytes:,} bytes each; "
        "raise FARM_ENGINE__KV_BYTES or free memory"
    )
