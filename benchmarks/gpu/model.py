"""A random Bloom made on the device, for the engine, for transformers and as a checkpoint: the same weights for all."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.byte_bpe import EOS, byte_tokenizer
from benchmarks.workload import save_config
from workers.engine.checkpoint import BloomConfig, Checkpoint
from workers.engine.presets import PRESETS
from workers.engine.weights import EMBEDDING, PREFIX, expected_shapes

SMALL = BloomConfig(vocab=20_000, hidden=256, layers=4, heads=4)
"""To see on any CPU, in a minute, that it runs."""
MODELS = {
    "small": SMALL,
    **{name: PRESETS[f"bigscience/bloom-{name}"] for name in ("560m", "1b1", "1b7", "3b", "7b1")},
}
_SPREAD = 0.02
_SPREAD_WIDTH = 512
_BLOCK_SCALE = 6.0
"""Blocks' weights are so many times as wide, so that texts do not repeat their last token for ever."""
_SHARD_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class RandomWeights:
    """Makes each tensor when it is asked for, by its name always the same. Implements ``WeightSource``."""

    config: BloomConfig
    dtype: torch.dtype
    device: str
    has_head: bool = False

    def __enter__(self) -> RandomWeights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""

    def take(self, name: str) -> Tensor:
        """Normal numbers; those of norms about 1."""
        shapes = expected_shapes(self.config)
        generator = torch.Generator(self.device).manual_seed(list(shapes).index(name))
        is_norm = "norm" in name or name.startswith("ln_f")
        spread = _SPREAD * math.sqrt(_SPREAD_WIDTH / self.config.hidden)
        if name.startswith("h.") and not is_norm:
            spread *= _BLOCK_SCALE
        mean = 1.0 if is_norm and name.endswith(".weight") else 0.0
        made = torch.empty(shapes[name], dtype=self.dtype, device=self.device)
        return made.normal_(mean, spread, generator=generator)


def open_random(checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> RandomWeights:
    """Weights for a checkpoint that has none: what ``Bloom`` opens instead of files."""
    return RandomWeights(checkpoint.config, dtype, device)


def checkpoint_without_weights(folder: Path, config: BloomConfig) -> Checkpoint:
    """Write configuration and tokenizer into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_config(folder, config)
    byte_tokenizer(config.vocab).save(str(folder / "tokenizer.json"))
    return Checkpoint(folder, config, (), frozenset({EOS}))


def save_checkpoint(folder: Path, config: BloomConfig, dtype: torch.dtype, device: str) -> Path:
    """Write the same model as a sharded checkpoint, for workers that read one."""
    checkpoint_without_weights(folder, config)
    places: dict[str, str] = {}
    for number, shard in enumerate(_shards(RandomWeights(config, dtype, device))):
        name = f"model-{number:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def transformers_model(config: BloomConfig, dtype: torch.dtype, device: str) -> Any:
    """transformers' own Bloom with the same weights on the device, ready to generate."""
    shape = transformers.BloomConfig(
        vocab_size=config.vocab, hidden_size=config.hidden, n_layer=config.layers, n_head=config.heads
    )
    with torch.device("meta"):
        model: Any = transformers.BloomForCausalLM(shape)
    weights = RandomWeights(config, dtype, device)
    state = {PREFIX + name: weights.take(name) for name in expected_shapes(config)}
    model.load_state_dict(state | {"lm_head.weight": state[PREFIX + EMBEDDING]}, assign=True)
    model.tie_weights()
    return model.eval()


def _shards(weights: RandomWeights) -> Iterator[dict[str, Tensor]]:
    """The tensors under their published names, on the CPU, a few GiB at a time."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name in expected_shapes(weights.config):
        shard[name] = weights.take(name).cpu()
        size += shard[name].nbytes
        if size > _SHARD_BYTES:
            yield shard
            shard, size = {}, 0
    if shard:
        yield shard
