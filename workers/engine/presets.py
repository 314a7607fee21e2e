"""The published Blooms by name: their shapes, so that one can be weighed and planned without its files."""

from __future__ import annotations

from workers.engine.checkpoint import BloomConfig

_VOCAB = 250_880
_SHAPES = {
    "-560m": (1024, 24, 16),
    "-1b1": (1536, 24, 16),
    "-1b7": (2048, 24, 16),
    "-3b": (2560, 30, 32),
    "-7b1": (4096, 30, 32),
    "": (14336, 70, 112),
}  # hidden, layers, heads


def _presets() -> dict[str, BloomConfig]:
    found = {}
    for suffix, (hidden, layers, heads) in _SHAPES.items():
        for family in ("bloom", "bloomz"):
            found[f"bigscience/{family}{suffix}"] = BloomConfig(_VOCAB, hidden, layers, heads)
    for tuned in ("-mt", "-p3"):
        found[f"bigscience/bloomz-7b1{tuned}"] = found["bigscience/bloom-7b1"]
        found[f"bigscience/bloomz{tuned}"] = found["bigscience/bloom"]
    return found


PRESETS = _presets()
"""Hub id to shape: Bloom, and Bloomz, which was tuned from it and has the same shapes."""


def parameters(config: BloomConfig) -> int:
    """Weights of a Bloom: embedding and its norm, blocks of 12 h^2 + 13 h, the last norm, a head that is not tied."""
    hidden = config.hidden
    embeddings = config.vocab * hidden * (1 if config.tied else 2)
    return embeddings + 4 * hidden + config.layers * (12 * hidden * hidden + 13 * hidden)
