"""Random Blooms and request mixes that benchmarks and tests share, the same from the same seed.

A Bloom of default random weights repeats its last token for ever, so that every comparison passes: the builder scales
the blocks' weights up until texts vary.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.byte_bpe import EOS, FIRST_BYTE, byte_tokenizer
from workers.engine.checkpoint import BloomConfig
from workers.engine.weights import HEAD, expected_shapes

BENCHMARK = BloomConfig(vocab=8192, hidden=512, layers=8, heads=8)
"""Small enough for a laptop; its weights miss the cache, as real ones do."""


@dataclass(frozen=True, slots=True)
class Item:
    """One request: prompt tokens and exactly how many to generate."""

    prompt: list[int]
    max_tokens: int


def requests(count: int, vocab: int, seed: int = 0) -> list[Item]:
    """A heavy-tailed mix: prompts of 8 to 128 tokens, outputs lognormal(3.5, 1.0) clipped to 4 to 256."""
    rng = random.Random(seed)
    return [
        Item(
            [rng.randrange(FIRST_BYTE, vocab) for _ in range(rng.randint(8, 128))],
            min(256, max(4, round(math.exp(rng.gauss(3.5, 1.0))))),
        )
        for _ in range(count)
    ]


def random_weights(config: BloomConfig, seed: int = 0, scale: float = 4.0) -> dict[str, torch.Tensor]:
    """fp32 weights under their published names: normal, those of the blocks ``scale`` times as wide.

    0.02 at 512 wide, and as many times more as a narrower model needs for the same mixing.
    """
    generator = torch.Generator().manual_seed(seed)
    spread = 0.02 * math.sqrt(512 / config.hidden)
    weights = {}
    for name, shape in expected_shapes(config).items():
        noise = torch.randn(shape, generator=generator) * spread
        is_norm = "norm" in name or name.startswith("ln_f")
        if is_norm and name.endswith(".weight"):
            noise += 1.0
        weights[name] = noise * scale if name.startswith("h.") and not is_norm else noise
    if not config.tied:
        weights[HEAD] = torch.randn(config.vocab, config.hidden, generator=generator) * spread
    return weights


def save_bloom(
    folder: Path, config: BloomConfig, seed: int = 0, scale: float = 4.0, dtype: torch.dtype = torch.float32
) -> Path:
    """Write a random Bloom as published checkpoints are: config.json, model.safetensors, tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.to(dtype) for name, tensor in random_weights(config, seed, scale).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_config(folder, config)
    byte_tokenizer(config.vocab).save(str(folder / "tokenizer.json"))
    return folder


def save_config(folder: Path, config: BloomConfig, **more: object) -> None:
    """Write config.json; ``more`` adds to it or overrides it."""
    body = {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "n_layer": config.layers,
        "n_head": config.heads,
        "layer_norm_epsilon": config.norm_eps,
        "apply_residual_connection_post_layernorm": config.residual_post_norm,
        "tie_word_embeddings": config.tied,
        "bos_token_id": 1,
        "eos_token_id": EOS,
        "pad_token_id": 3,
    }
    (folder / "config.json").write_text(json.dumps(body | more, indent=2))
