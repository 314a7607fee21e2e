"""A checkpoint's tensors by name: checked for presence, shape and finite numbers, given out one at a time.

Knows the layouts of published files: names with and without ``transformer.``, shards, a tied or explicit head.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from farm.errors import ModelRefused
from workers.engine.checkpoint import BloomConfig, Checkpoint

PREFIX = "transformer."
EMBEDDING = "word_embeddings.weight"
HEAD = "lm_head.weight"
_AT_ONCE = 1 << 24


def expected_shapes(config: BloomConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that a Bloom needs, by its name without prefix; an explicit head is not among them."""
    hidden = config.hidden
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab, hidden)}

    def affine(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]

    affine("word_embeddings_layernorm", hidden)
    for layer in range(config.layers):
        affine(f"h.{layer}.input_layernorm", hidden)
        affine(f"h.{layer}.self_attention.query_key_value", 3 * hidden, hidden)
        affine(f"h.{layer}.self_attention.dense", hidden, hidden)
        affine(f"h.{layer}.post_attention_layernorm", hidden)
        affine(f"h.{layer}.mlp.dense_h_to_4h", 4 * hidden, hidden)
        affine(f"h.{layer}.mlp.dense_4h_to_h", hidden, 4 * hidden)
    affine("ln_f", hidden)
    return shapes


class WeightSource(Protocol):
    """Where a stage takes its tensors from: a checkpoint's files, or whatever gives out as many under these names."""

    @property
    def config(self) -> BloomConfig: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def has_head(self) -> bool:
        """Whether the head has weights of its own."""

    def take(self, name: str) -> Tensor:
        """One tensor of ``expected_shapes``, or the head, on the stage's device."""


class Weights:
    """Opens all files of a checkpoint; ``take`` reads a tensor. A context manager, since the files are mapped."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: str = "cpu") -> None:
        """Check names and shapes against the configuration, without reading tensors. Raises ModelRefused.

        device: where tensors are given out, as ``cuda:0``; they are read, cast and checked there.
        """
        self.config = checkpoint.config
        self.dtype = dtype
        self.device = torch.device(device)
        self._folder = checkpoint.folder
        self._files: list[Any] = []
        self._where: dict[str, tuple[Any, str]] = {}
        for path in checkpoint.files:
            self._open(path)
        self._shapes = expected_shapes(checkpoint.config)
        if HEAD in self._where or not checkpoint.config.tied:
            self._shapes[HEAD] = self._shapes[EMBEDDING]
        self._check()

    def __enter__(self) -> Weights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._where.clear()
        self._files.clear()

    @property
    def has_head(self) -> bool:
        """Whether the head has weights of its own. Files that hold both are not tied, as in transformers."""
        return HEAD in self._where

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, by its name without prefix."""
        return self._shapes[name]

    def take(self, name: str, part: tuple[slice, ...] | None = None) -> Tensor:
        """Read one tensor, or a part of it and no more, in the engine's dtype.

        part: a slice for each dimension.  Raises ModelRefused if what was read holds NaN or infinity.
        """
        file, stored = self._where[name]
        tensor: Tensor = file.get_tensor(stored) if part is None else file.get_slice(stored)[part]
        tensor = tensor.to(self.device, self.dtype)
        if not _is_finite(tensor):
            raise ModelRefused(f"{self._folder}: {stored} holds NaN or infinity in {self.dtype}; the file is damaged")
        return tensor

    def _open(self, path: Path) -> None:
        # safetensors copies to these devices by itself; to any other, torch does.
        direct = str(self.device) if self.device.type in ("cpu", "cuda") else "cpu"
        try:
            file: Any = safe_open(path, framework="pt", device=direct)
        except (SafetensorError, OSError) as error:
            raise ModelRefused(f"{path} can't be read as safetensors: {error}; download it again") from error
        self._files.append(file)
        self._where |= {stored.removeprefix(PREFIX): (file, stored) for stored in file.offset_keys()}

    def _check(self) -> None:
        missing = [name for name in self._shapes if name not in self._where]
        if missing:
            raise ModelRefused(
                f"{self._folder} lacks {len(missing)} of {len(self._shapes)} tensors: {', '.join(missing[:3])}"
            )
        for name, shape in self._shapes.items():
            file, stored = self._where[name]
            piece = file.get_slice(stored)
            found = tuple(piece.get_shape())
            if found != shape:
                raise ModelRefused(f"{self._folder}: {stored} has shape {found}, but config.json makes it {shape}")
            if piece.get_dtype() not in {"F16", "BF16", "F32"}:
                raise ModelRefused(f"{self._folder}: {stored} is {piece.get_dtype()}; the farm loads F16, BF16 and F32")


OpenWeights: TypeAlias = Callable[[Checkpoint, torch.dtype, str], AbstractContextManager[WeightSource]]
"""Opens a checkpoint's weights in a dtype on a device, as ``Weights`` does."""


def _is_finite(tensor: Tensor) -> bool:
    """Looked at piece by piece: the check of a whole embedding would take several times its memory."""
    flat = tensor.flatten()
    cuts = list(range(_AT_ONCE, flat.numel(), _AT_ONCE))
    return all(bool(torch.isfinite(piece).all()) for piece in flat.tensor_split(cuts))
