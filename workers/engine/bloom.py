"""Bloom as the engine's model: checkpoint, tokenizer, stage, cache and sampler put together."""

from __future__ import annotations

import time

import torch

from farm.errors import ModelRefused
from farm.settings import EngineSettings, ModelSettings
from workers.engine.arena import MIN_BLOCK, Arena, block_size
from workers.engine.batch import Batcher
from workers.engine.checkpoint import BloomConfig, find_checkpoint
from workers.engine.detokenizer import Pieces
from workers.engine.engine import Pick
from workers.engine.kv_cache import KVCache
from workers.engine.machine import free_bytes, usable_cores
from workers.engine.protocol import Ready
from workers.engine.sampler import sample
from workers.engine.scheduler import Step
from workers.engine.stage import Stage
from workers.engine.tokenizer import Tokenizer
from workers.engine.weights import Weights

_DTYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Bloom:
    """A loaded Bloom checkpoint. Implements ``engine.Model``."""

    @torch.inference_mode()
    def __init__(self, model: ModelSettings, engine: EngineSettings) -> None:
        """Load the model. Raises ModelRefused with the reason if it can't be served. Sets torch's thread count."""
        started = time.perf_counter()
        torch.set_num_threads(engine.threads or usable_cores())
        dtype = _DTYPES[model.dtype]
        checkpoint = find_checkpoint(model.id, model.revision)
        config = checkpoint.config
        self._tokenizer = Tokenizer(checkpoint.tokenizer)
        with Weights(checkpoint, dtype) as weights:
            self._stage = Stage(weights)
        kv_tokens = plan_kv_tokens(config, engine, dtype)
        self._cache = KVCache(config.layers, config.heads, config.head_dim, kv_tokens, dtype)
        self._batcher = Batcher(self._cache)
        self._stage.warm_up(engine.max_slots)
        self.eos_ids = checkpoint.eos_ids
        self.ready = Ready(
            slots=engine.max_slots,
            context=min(engine.max_context, Arena(kv_tokens).largest),
            kv_tokens=kv_tokens,
            vocab=config.vocab,
            fingerprint=checkpoint.fingerprint(str(dtype).removeprefix("torch.")),
            load_s=round(time.perf_counter() - started, 3),
            tokenizer=str(checkpoint.tokenizer),
        )

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt."""
        return self._tokenizer.encode(prompt)

    def pieces(self) -> Pieces:
        """A fresh detokenizer for one sequence."""
        return self._tokenizer.pieces()

    @torch.inference_mode()
    def run(self, step: Step) -> list[Pick]:
        """Compute a step; returns a pick for each of ``step.sampled``."""
        ordered = self._batcher.order(step)
        logits = self._stage.forward(self._batcher.batch(ordered), self._cache)
        picks = dict(zip(ordered.sampled, sample(logits, ordered.sampled), strict=True))
        return [picks[sequence] for sequence in step.sampled]


def plan_kv_tokens(config: BloomConfig, engine: EngineSettings, dtype: torch.dtype) -> int:
    """How many KV tokens to reserve: what all slots need, up to FARM_ENGINE__KV_BYTES or a quarter of the free memory.

    Raises ModelRefused if that is less than one block.
    """
    token_bytes = KVCache.token_bytes(config.layers, config.hidden, dtype)
    limit = engine.kv_bytes or free_bytes() // 4
    tokens = min(engine.max_slots * block_size(engine.max_context), limit // token_bytes) // MIN_BLOCK * MIN_BLOCK
    if not tokens:
        raise ModelRefused(
            f"{limit:,} bytes for keys and values hold no block of {MIN_BLOCK} tokens at {token_bytes:,} bytes each; "
            "raise FARM_ENGINE__KV_BYTES or free memory"
        )
    return tokens
