"""Which part of each tensor of a Bloom a rank holds. Knows names and shapes, and reads no tensor.

Layers that make heads or inner features are cut by outputs, so that a rank computes its own with nothing from others;
layers that take them are cut by inputs, so that the ranks' products add up to the layer's: one sum each. Embedding and
head are cut by tokens. Norms and the biases that are added to a sum are whole on every rank.
Source: Megatron-LM, Shoeybi et al. 2019, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from workers.engine.checkpoint import BloomConfig
from workers.engine.module_bytes import ELEMENT_BYTES
from workers.engine.weights import EMBEDDING, HEAD, expected_shapes

_BY_OUTPUTS = ("query_key_value.weight", "query_key_value.bias", "dense_h_to_4h.weight", "dense_h_to_4h.bias")
_BY_INPUTS = ("self_attention.dense.weight", "dense_4h_to_h.weight")

Part = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Rank:
    """Number ``number`` of ``count`` ranks, from 0 on."""

    number: int
    count: int

    def share(self, things: int) -> range:
        """Which of so many things in a row are this rank's; ranks differ by one at the most."""
        return range(things * self.number // self.count, things * (self.number + 1) // self.count)

    def part(self, name: str, shape: tuple[int, ...]) -> Part:
        """This rank's part of a tensor of a checkpoint, by its name without prefix and its whole shape.

        Rows of query_key_value are head-major, [heads, 3, head_dim]: an even share of them is whole heads.
        """
        whole = tuple(slice(0, size) for size in shape)
        if name in (EMBEDDING, HEAD) or name.endswith(_BY_OUTPUTS):
            mine = self.share(shape[0])
            return (slice(mine.start, mine.stop), *whole[1:])
        if name.endswith(_BY_INPUTS):
            mine = self.share(shape[1])
            return (whole[0], slice(mine.start, mine.stop))
        return whole

    def held_bytes(self, config: BloomConfig, dtype: str) -> int:
        """Bytes of its weights. A tied head is its part of the embedding."""
        shapes = expected_shapes(config)
        if not config.tied:
            shapes[HEAD] = shapes[EMBEDDING]
        return sum(self._bytes(name, shape, dtype) for name, shape in shapes.items())

    def read_bytes(self, config: BloomConfig, dtype: str) -> int:
        """Bytes of weights that it reads in a step: of an embedding that is not the head only the tokens' rows."""
        held = self.held_bytes(config, dtype)
        return held if config.tied else held - self._bytes(EMBEDDING, expected_shapes(config)[EMBEDDING], dtype)

    def _bytes(self, name: str, shape: tuple[int, ...], dtype: str) -> int:
        numbers: int = prod(piece.stop - piece.start for piece in self.part(name, shape))
        return numbers * ELEMENT_BYTES[dtype]
