"""Which device holds which layers of a Bloom, and how many tokens' keys and values fit beside them.

Says what a plan is and what follows from it; ``planner`` makes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from farm.errors import ModelRefused
from workers.engine.checkpoint import BloomConfig
from workers.engine.kv.paged import PAGE
from workers.engine.module_bytes import layer_token_bytes, tensors_of


class ModelTooLarge(ModelRefused):
    """A model does not fit its devices. missing: bytes to add to each so that it does, the most of them least."""

    code = "model_too_large"

    def __init__(self, message: str, missing: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.missing = tuple(missing)


@dataclass(frozen=True, slots=True)
class Device:
    """A device's name, as torch's ``cuda:0``, and its memory in bytes."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What one device holds. ``kv_bytes`` is the room left for keys and values; ``kv_tokens`` fit it.

    step_bytes: weights read in a step.  logits_bytes: kept for the logits of all slots and what tokens are drawn with.
    kv_tokens: whole blocks; None for a stage without layers, which holds none.
    """

    device: Device
    layers: range
    has_embedding: bool
    has_head: bool
    weight_bytes: int
    step_bytes: int
    logits_bytes: int
    kv_bytes: int
    kv_tokens: int | None

    def tensors(self, config: BloomConfig) -> list[str]:
        """Names of the tensors that this stage takes from a checkpoint."""
        return tensors_of(config, self.layers, has_embedding=self.has_embedding, has_head=self.has_head)


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """Stages in the order of the forward pass; a device that none uses is ``idle``.

    context: tokens of the longest sequence.  filled_step_bytes: what the slowest stage would read in a step if devices
    were filled in turn, as accelerate does; None where it finds no room or was not asked.  ranks: 1, or how many share
    every layer: then each "stage" is a rank with its part of all of them.  quantization, kv_dtype: what weights, and
    keys and values, are kept in, as the settings name it.
    """

    stages: tuple[StagePlan, ...]
    idle: tuple[Device, ...]
    config: BloomConfig
    dtype: str
    context: int
    filled_step_bytes: int | None = None
    ranks: int = 1
    quantization: str | None = None
    kv_dtype: str = "auto"

    @property
    def kv_tokens(self) -> int:
        """Tokens whose keys and values fit on every stage: each keeps those of its own layers."""
        return min(stage.kv_tokens for stage in self.stages if stage.kv_tokens is not None)

    @property
    def kv_blocks(self) -> int:
        """Pages of PAGE tokens."""
        return self.kv_tokens // PAGE

    @property
    def kv_token_bytes(self) -> int:
        """Bytes of one token's keys and values over all stages."""
        return self.config.layers * layer_token_bytes(self.config, self.dtype, self.kv_dtype)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights on all devices, a copied head included."""
        return sum(stage.weight_bytes for stage in self.stages)

    @property
    def step_bytes(self) -> int:
        """Bytes of weights that one step reads, over all stages."""
        return sum(stage.step_bytes for stage in self.stages)

    @property
    def largest_step_bytes(self) -> int:
        """Bytes that the slowest stage reads: with a micro-batch per stage in flight, what a step takes."""
        return max(stage.step_bytes for stage in self.stages)

    @property
    def imbalance(self) -> float:
        """How many times the average stage's read the largest is; 1.0 is even."""
        return self.largest_step_bytes * len(self.stages) / self.step_bytes

    def sequences(self, tokens: int) -> int:
        """How many sequences of so many tokens fit at once."""
        return self.kv_blocks // -(-tokens // PAGE)
