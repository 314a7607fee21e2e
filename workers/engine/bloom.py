"""Bloom as the engine's model: checkpoint, tokenizer, stages, caches and sampler put together."""

from __future__ import annotations

import itertools
import time
from collections import deque

import torch

from farm.errors import ModelRefused
from farm.settings import EngineSettings, ModelSettings
from workers.engine.checkpoint import BloomConfig, Checkpoint, find_checkpoint
from workers.engine.detokenizer import Pieces
from workers.engine.engine import OutOfMemory, Result
from workers.engine.kv.arena import MIN_BLOCK, Arena, block_size
from workers.engine.kv.cache import KVCache
from workers.engine.kv.contiguous import ContiguousKV
from workers.engine.kv.manager import KVManager
from workers.engine.kv.paged import PagedKV
from workers.engine.kv.pages import PageBuffers
from workers.engine.layout import in_memory_order, lay_out
from workers.engine.machine import free_bytes, usable_cores
from workers.engine.pipeline import Pipeline, Shard
from workers.engine.protocol import Ready
from workers.engine.sampler import sample
from workers.engine.scheduler import Step
from workers.engine.sequence import Sequence
from workers.engine.shard import ContiguousShard, PagedShard
from workers.engine.stage import Stage
from workers.engine.tokenizer import Tokenizer
from workers.engine.weights import Weights

_DTYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SHORTAGES = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc")


class Bloom:
    """A loaded Bloom checkpoint. Implements ``engine.Model``."""

    @torch.inference_mode()
    def __init__(self, model: ModelSettings, engine: EngineSettings) -> None:
        """Load the model. Raises ModelRefused with the reason if it can't be served. Sets torch's thread count."""
        started = time.perf_counter()
        threads = engine.threads or usable_cores()
        torch.set_num_threads(threads)
        dtype = _DTYPES[model.dtype]
        checkpoint = find_checkpoint(model.id, model.revision)
        config = checkpoint.config
        self._tokenizer = Tokenizer(checkpoint.tokenizer)
        self._is_paged = engine.kv_layout == "paged"
        self._caching = engine.prefix_caching
        kv_tokens = plan_kv_tokens(config, engine, dtype)
        self._pipeline = Pipeline(load_shards(checkpoint, engine, dtype, kv_tokens), threads)
        # Of each step in flight, the sequences that get a token: as the engine wants them, and in the rows' order.
        self._sampled: deque[tuple[list[Sequence], list[Sequence]]] = deque()
        self.eos_ids = checkpoint.eos_ids
        self.ready = Ready(
            slots=engine.max_slots,
            context=min(engine.max_context, Arena(kv_tokens).largest),
            kv_tokens=kv_tokens,
            vocab=config.vocab,
            fingerprint=checkpoint.fingerprint(_precision(dtype, engine)),
            load_s=round(time.perf_counter() - started, 3),
            tokenizer=str(checkpoint.tokenizer),
        )

    @property
    def depth(self) -> int:
        return self._pipeline.depth

    def memory(self) -> KVManager:
        """The bookkeeping of its KV cache, empty."""
        kind = PagedKV if self._is_paged else ContiguousKV
        return kind(self.ready.kv_tokens, self._caching)

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt."""
        return self._tokenizer.encode(prompt)

    def pieces(self) -> Pieces:
        """A fresh detokenizer for one sequence."""
        return self._tokenizer.pieces()

    def submit(self, step: Step) -> None:
        """Begin a step."""
        ordered = in_memory_order(step)
        self._sampled.append((step.sampled, ordered.sampled))
        self._pipeline.submit(lay_out(ordered))

    @torch.inference_mode()
    def collect(self) -> Result:
        """The oldest step's picks, one for each of ``step.sampled``. Raises OutOfMemory."""
        wanted, rows = self._sampled.popleft()
        try:
            logits, seconds = self._pipeline.collect()
            picks = dict(zip(rows, sample(logits, rows), strict=True))
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(word in str(error) for word in _SHORTAGES):
                raise
            raise OutOfMemory("a step found no memory to compute in") from error
        return Result([picks[sequence] for sequence in wanted], seconds)

    def drop(self) -> None:
        """Wait for the steps in flight and forget what came of them."""
        self._sampled.clear()
        self._pipeline.drop()


def load_shards(checkpoint: Checkpoint, engine: EngineSettings, dtype: torch.dtype, kv_tokens: int) -> list[Shard]:
    """Load the model's stages, one per device. Raises ModelRefused."""
    config = checkpoint.config
    runs = split_layers(config.layers, max(1, len(engine.devices)))
    shards: list[Shard] = []
    with Weights(checkpoint, dtype) as weights:
        for layers in runs:
            stage = Stage(
                weights,
                layers,
                first=layers is runs[0],
                last=layers is runs[-1],
            )
            stage.warm_up(engine.max_slots, dtype)
            sizes = (len(layers), config.heads, config.head_dim, kv_tokens, dtype)
            if engine.kv_layout == "paged":
                shards.append(PagedShard(stage, PageBuffers(*sizes, torch.device("cpu"))))
            else:
                shards.append(ContiguousShard(stage, KVCache(*sizes)))
    return shards


def split_layers(layers: int, stages: int) -> list[range]:
    """Runs of layers of nearly equal length."""
    cuts = [layers * i // stages for i in range(stages + 1)]
    return [range(first, last) for first, last in itertools.pairwise(cuts)]


def plan_kv_tokens(config: BloomConfig, engine: EngineSettings, dtype: torch.dtype) -> int:
    """How many KV tokens to reserve: what all slots need, up to FARM_ENGINE__KV_BYTES or a quarter of the free memory.

    Raises ModelRefused if that is less than one block, or more than there is.
    """
    token_bytes = KVCache.token_bytes(config.layers, config.hidden, dtype)
    free = free_bytes()
    if engine.kv_bytes and engine.kv_bytes > free:
        raise ModelRefused(
            f"FARM_ENGINE__KV_BYTES asks for {engine.kv_bytes:,} bytes for keys and values, and {free:,} are free; "
            f"lower it by {engine.kv_bytes - free:,} or unset it"
        )
    limit = engine.kv_bytes or free // 4
    tokens = min(engine.max_slots * block_size(engine.max_context), limit // token_bytes) // MIN_BLOCK * MIN_BLOCK
    if not tokens:
        raise ModelRefused(
            f"{limit:,} bytes for keys and values hold no block of {MIN_BLOCK} tokens at {token_bytes:,} bytes each; "
            "raise FARM_ENGINE__KV_BYTES or free memory"
        )
    return tokens


def _precision(dtype: torch.dtype, engine: EngineSettings) -> str:
    """What the numbers depend on, for the fingerprint."""
    name = str(dtype).removeprefix("torch.")
    return f"{name}+{engine.quantization}" if engine.quantization else name
