"""How many bytes each part of a Bloom takes, from its shape alone, and what a run of parts takes on a device.

A Bloom is a row of units: the embedding with its norm, the blocks, the last norm with the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from workers.engine.checkpoint import BloomConfig
from workers.engine.weights import EMBEDDING, HEAD, expected_shapes

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number, by the names of dtypes that the engine computes in."""

SCALE_BYTES = 4
"""Bytes of the fp32 scale that a row of 8-bit weights has, and a token's keys, and its values, in each head."""


@dataclass(frozen=True, slots=True)
class ModuleBytes:
    """Bytes of the parts of a Bloom. A tied head has as many as the embedding and is the same memory."""

    embedding: int
    embedding_norm: int
    block: int
    final_norm: int
    head: int
    is_tied: bool

    def held(self, layers: range, *, has_embedding: bool, has_head: bool) -> int:
        """Bytes of weights on a device that holds these parts; a tied head beside the embedding costs nothing."""
        first = self.embedding + self.embedding_norm if has_embedding else 0
        shared = self.head if self.is_tied and has_embedding else 0
        return first + len(layers) * self.block + (self.final_norm + self.head - shared if has_head else 0)

    def read(self, layers: range, *, has_embedding: bool, has_head: bool) -> int:
        """Bytes of weights read in a step. Of the embedding only the rows of a step's tokens are, which counts as 0."""
        first = self.embedding_norm if has_embedding else 0
        return first + len(layers) * self.block + (self.final_norm + self.head if has_head else 0)


def bytes_of_shapes(config: BloomConfig, dtype: str, quantization: str | None = None) -> ModuleBytes:
    """The bytes that the engine keeps of a checkpoint's tensors. dtype: a name in ELEMENT_BYTES.

    quantization: None or int8, which keeps every matrix that is multiplied with in 8 bits, the head's too: it is then
    no longer the same memory as the embedding.
    """
    shapes = expected_shapes(config)
    counts = {name: prod(shape) * ELEMENT_BYTES[dtype] for name, shape in shapes.items()}
    head = counts[EMBEDDING]
    if quantization is not None:
        matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2 and name != EMBEDDING}
        counts |= {name: _quantized(shape) for name, shape in matrices.items()}
        head = _quantized(shapes[EMBEDDING])

    def under(prefix: str) -> int:
        return sum(count for name, count in counts.items() if name.startswith(prefix))

    return ModuleBytes(
        embedding=counts[EMBEDDING],
        embedding_norm=under("word_embeddings_layernorm."),
        block=under("h.0."),
        final_norm=under("ln_f."),
        head=head,
        is_tied=config.tied and quantization is None,
    )


def tensors_of(config: BloomConfig, layers: range, *, has_embedding: bool, has_head: bool) -> list[str]:
    """Names, without prefix, of the tensors that a device with these parts reads, and no others."""
    prefixes = [f"h.{layer}." for layer in layers]
    prefixes += ["word_embeddings"] if has_embedding else []
    prefixes += ["ln_f."] if has_head else []
    names = [name for name in expected_shapes(config) if name.startswith(tuple(prefixes))]
    head = EMBEDDING if config.tied else HEAD
    return [*names, head] if has_head and head not in names else names


def layer_token_bytes(config: BloomConfig, dtype: str, kv_dtype: str = "auto") -> int:
    """Bytes of one token's keys and values in one layer. kv_dtype: as in FARM_ENGINE__KV_DTYPE."""
    if kv_dtype == "auto":
        return 2 * config.hidden * ELEMENT_BYTES[dtype]
    return 2 * (config.hidden + config.heads * SCALE_BYTES)


def _quantized(shape: tuple[int, ...]) -> int:
    """A byte for each weight and a scale for each row."""
    return prod(shape) + shape[0] * SCALE_BYTES
