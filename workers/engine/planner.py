"""Plan a Bloom over devices from its shape alone: feasible first, then balanced.

accelerate weighs transformers' own model, empty and tied, and its ``infer_auto_device_map`` makes the first plan: it
fills one device after the other, which leaves the first ones slow and the last ones idle. What is ours is the balance:
a pipeline is as fast as its slowest stage, and decoding is bound by the weights that a stage reads in a step. What it
gives in a second is its sequences over its slowest step: so of the cuts whose largest read is within a twentieth of the
least, the one with the most tokens' room, as far as slots can use it, for each byte of that read is taken. One device
needs no plan: transformers and accelerate, which take seconds to load, are not loaded for it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import inf

from workers.engine.checkpoint import BloomConfig
from workers.engine.kv.paged import PAGE
from workers.engine.module_bytes import ModuleBytes, bytes_of_shapes, layer_token_bytes
from workers.engine.partition import cheapest_cut
from workers.engine.presets import parameters
from workers.engine.reserve import logits_bytes, reserved, with_reserve
from workers.engine.shard_plan import Device, ModelTooLarge, ShardPlan, StagePlan

SLOWER_PART = 20
"""Steps may take this part of the quickest one's time longer, a twentieth, for the room that it gives."""

NAMED = 8
"""Devices that a refusal names; a line of more is read by nobody."""


def plan_shards(
    config: BloomConfig,
    dtype: str,
    devices: Sequence[Device],
    *,
    context: int = 2048,
    slots: int = 64,
    reserve: int | None = None,
    quantization: str | None = None,
    kv_dtype: str = "auto",
) -> ShardPlan:
    """Plan a Bloom over devices, in their order.

    dtype: float32, bfloat16 or float16.  context: tokens of the longest sequence; at least one such must fit.
    slots: sequences at once, for whose logits the device with the head keeps room; 0 keeps none.
    reserve: bytes kept free on each device beside that, RESERVE_BYTES or an eighth of it unless given.
    quantization, kv_dtype: what weights, and keys and values, are kept in, as the settings name it.
    Raises ModelTooLarge, which names the missing bytes.
    """
    if not devices:
        raise ValueError("a plan needs at least one device")
    if len(devices) == 1 or quantization is not None:
        # accelerate does not know how the engine keeps 8-bit weights.
        parts = bytes_of_shapes(config, dtype, quantization)
        return _Planner(config, dtype, devices, context, slots, reserve, parts, quantization, kv_dtype).plan()
    # Here because it takes seconds, and one device does without.
    from workers.engine.empty_model import EmptyModel

    model = EmptyModel(config, dtype)
    planner = _Planner(config, dtype, devices, context, slots, reserve, model.module_bytes(), None, kv_dtype)
    plan = planner.plan()
    kv_bytes = planner.kv_tokens * planner.token_bytes
    filled = model.filled_step_bytes(planner.budgets, kv_bytes, planner.logits_bytes)
    return replace(plan, filled_step_bytes=filled)


@dataclass(frozen=True, slots=True)
class _Run:
    """Units of a Bloom in a row: embedding, blocks, head. Bytes of weights held and read in a step, and of logits."""

    layers: range
    has_embedding: bool
    has_head: bool
    weight_bytes: int
    step_bytes: int
    logits_bytes: int


class _Planner:
    """One model, one list of devices."""

    def __init__(
        self,
        config: BloomConfig,
        dtype: str,
        devices: Sequence[Device],
        context: int,
        slots: int,
        reserve: int | None,
        parts: ModuleBytes,
        quantization: str | None,
        kv_dtype: str,
    ) -> None:
        self.budgets = [max(0, device.bytes - reserved(device.bytes, reserve)) for device in devices]
        self.kv_tokens = _whole_blocks(context + PAGE - 1)
        self._config, self._dtype, self._devices = config, dtype, devices
        self._context, self._reserve = context, reserve
        self._quantization, self._kv_dtype = quantization, kv_dtype
        self.token_bytes = layer_token_bytes(config, dtype, kv_dtype)
        self._usable = max(1, slots) * self.kv_tokens
        self.logits_bytes = logits_bytes(config.vocab, slots, dtype, quantization)
        self._units = config.layers + 2
        self._runs = {
            (start, stop): _run(parts, config.layers, start, stop, self.logits_bytes)
            for start in range(self._units)
            for stop in range(start + 1, self._units + 1)
        }

    def plan(self) -> ShardPlan:
        """The most usable tokens for each byte of a nearly least read, then the most even. Raises ModelTooLarge."""
        self._check_room()
        largest, tokens = self._best()

        def uneven(device: int, run: _Run) -> float:
            is_worse = run.step_bytes > largest or self._tokens_short(device, run) > self._usable - tokens
            return inf if is_worse else run.step_bytes**2

        _, stops = self._cut(operator.add, uneven)
        stages, idle, start = [], [], 0
        for index, stop in enumerate(stops):
            if start == stop:
                idle.append(self._devices[index])
            else:
                stages.append(self._stage(index, self._runs[start, stop]))
            start = stop
        return ShardPlan(
            tuple(stages),
            tuple(idle),
            self._config,
            self._dtype,
            self._context,
            quantization=self._quantization,
            kv_dtype=self._kv_dtype,
        )

    def _best(self) -> tuple[int, int]:
        """The largest read of the cut to take, and the usable tokens that fit its tightest stage."""
        least = int(self._cut(max, lambda _, run: run.step_bytes)[0])
        limit = least + least // SLOWER_PART
        reads = sorted({run.step_bytes for run in self._runs.values() if least <= run.step_bytes <= limit})
        found = [(read, self._usable_tokens(read)) for read in reads]
        return max(found, key=lambda choice: Fraction(choice[1], choice[0]))  # of equals the first: the least read

    def _usable_tokens(self, largest: int) -> int:
        """The most usable tokens on the tightest stage, of all cuts without a larger read than this."""
        fewest, _ = self._cut(
            max, lambda device, run: inf if run.step_bytes > largest else self._tokens_short(device, run)
        )
        return self._usable - int(fewest)

    def _tokens_short(self, device: int, run: _Run) -> int:
        """Tokens that slots could use and that do not fit."""
        tokens = self._kv_tokens(device, run)
        return 0 if tokens is None else max(0, self._usable - tokens)

    def _stage(self, index: int, run: _Run) -> StagePlan:
        return StagePlan(
            device=self._devices[index],
            layers=run.layers,
            has_embedding=run.has_embedding,
            has_head=run.has_head,
            weight_bytes=run.weight_bytes,
            step_bytes=run.step_bytes,
            logits_bytes=run.logits_bytes,
            kv_bytes=self._room(index, run),
            kv_tokens=self._kv_tokens(index, run),
        )

    def _cut(
        self, join: Callable[[float, float], float], cost: Callable[[int, _Run], float]
    ) -> tuple[float, list[int]]:
        """The cheapest cut of those in which every run fits its device. A device may stay idle, at no cost."""

        def of(device: int, start: int, stop: int) -> float:
            if start == stop:
                return 0
            run = self._runs[start, stop]
            return inf if self._need(run, self.kv_tokens) > self.budgets[device] else cost(device, run)

        return cheapest_cut(self._units, len(self._devices), of, join)

    def _room(self, device: int, run: _Run) -> int:
        return self.budgets[device] - run.weight_bytes - run.logits_bytes

    def _need(self, run: _Run, kv_tokens: int) -> int:
        return run.weight_bytes + run.logits_bytes + len(run.layers) * self.token_bytes * kv_tokens

    def _kv_tokens(self, device: int, run: _Run) -> int | None:
        if not run.layers:
            return None
        return _whole_blocks(self._room(device, run) // (len(run.layers) * self.token_bytes))

    def _check_room(self) -> None:
        """Raise ModelTooLarge unless the weights and one sequence fit."""
        missing = self._missing(self.kv_tokens)
        if not any(missing):
            return
        weights_fit = not any(self._missing(PAGE))
        fewer_slots_do = not any(self._missing(self.kv_tokens, with_logits=False))
        lacks = "has room for its weights but not for" if weights_fit else "does not fit with"
        remedies = [
            "bfloat16" if self._dtype == "float32" else "",
            "" if self._quantization else "8-bit weights (FARM_ENGINE__QUANTIZATION=int8)",
            "8-bit keys and values (FARM_ENGINE__KV_DTYPE=int8)" if weights_fit and self._kv_dtype == "auto" else "",
            "a shorter context (FARM_ENGINE__MAX_CONTEXT)" if weights_fit else "",
            "fewer slots (FARM_ENGINE__MAX_SLOTS)" if fewer_slots_do else "",
            "more devices or larger ones",
        ]
        raise ModelTooLarge(
            f"a Bloom of {parameters(self._config):,} parameters in {self._dtype} {lacks} one sequence of "
            f"{self._context:,} tokens: {self._lacking(missing)}; use {', '.join(filter(None, remedies))}",
            missing,
        )

    def _lacking(self, missing: Sequence[int]) -> str:
        named = [f"{count:,} on {device.name}" for device, count in zip(self._devices, missing, strict=True) if count]
        if len(named) == 1:
            return f"{sum(missing):,} bytes are missing on {named[0].rpartition(' ')[2]}"
        if len(named) > NAMED:
            named[NAMED:] = [f"up to {max(missing):,} on each of {len(named) - NAMED} more"]
        return f"{sum(missing):,} bytes are missing, {', '.join(named)}"

    def _missing(self, kv_tokens: int, *, with_logits: bool = True) -> list[int]:
        """Bytes to add to each device so that all fits: the most on one device is least, then their sum."""

        def lack(device: int, start: int, stop: int) -> int:
            if start == stop:
                return 0
            run = self._runs[start, stop]
            need = self._need(run, kv_tokens) - (0 if with_logits else run.logits_bytes)
            if need <= self.budgets[device]:
                return 0
            return with_reserve(need, self._reserve) - self._devices[device].bytes

        count = len(self._devices)
        most, _ = cheapest_cut(self._units, count, lack, max)

        def bounded(device: int, start: int, stop: int) -> float:
            lacking = lack(device, start, stop)
            return inf if lacking > most else lacking

        _, stops = cheapest_cut(self._units, count, bounded, operator.add)
        starts = [0, *stops[:-1]]
        return [lack(device, start, stop) for device, (start, stop) in enumerate(zip(starts, stops, strict=True))]


def _run(parts: ModuleBytes, layers: int, start: int, stop: int, logits: int) -> _Run:
    """Unit 0 is the embedding, unit ``layers + 1`` the head, those between are the blocks."""
    blocks = range(max(start, 1) - 1, max(min(stop, layers + 1), 1) - 1)
    has_embedding, has_head = start == 0, stop == layers + 2
    return _Run(
        layers=blocks,
        has_embedding=has_embedding,
        has_head=has_head,
        weight_bytes=parts.held(blocks, has_embedding=has_embedding, has_head=has_head),
        step_bytes=parts.read(blocks, has_embedding=has_embedding, has_head=has_head),
        logits_bytes=logits if has_head else 0,
    )


def _whole_blocks(tokens: int) -> int:
    return tokens // PAGE * PAGE
