"""Bloom as the engine's model: checkpoint, tokenizer, memory and what runs its steps, put together."""

from __future__ import annotations

import time

import torch

from farm.settings import EngineSettings, ModelSettings
from workers.engine.checkpoint import Checkpoint, find_checkpoint
from workers.engine.detokenizer import Pieces
from workers.engine.gpu.runner import Runner
from workers.engine.gpu.shard import DeviceShard
from workers.engine.kv.manager import KVManager
from workers.engine.launcher import Launcher
from workers.engine.loading import load_device_shards, load_shards, place
from workers.engine.machine import usable_cores
from workers.engine.model import OutOfMemory, Result
from workers.engine.pipeline import Pipeline
from workers.engine.protocol import Ready
from workers.engine.sampled import SampledPipeline
from workers.engine.scheduler import Step
from workers.engine.shortage import is_shortage
from workers.engine.tokenizer import Tokenizer
from workers.engine.weights import OpenWeights, Weights


class Bloom:
    """A loaded Bloom checkpoint. Implements ``model.Model``."""

    @torch.inference_mode()
    def __init__(
        self,
        model: ModelSettings,
        engine: EngineSettings,
        checkpoint: Checkpoint | None = None,
        open_weights: OpenWeights = Weights,
    ) -> None:
        """Load the model. Raises ModelRefused with the reason if it can't be served. Sets torch's thread count.

        checkpoint, open_weights: for weights that are in no files; else those that ``model`` names are found and read.
        """
        started = time.perf_counter()
        threads = engine.threads or usable_cores()
        checkpoint = checkpoint or find_checkpoint(model.id, model.revision)
        self._tokenizer = Tokenizer(checkpoint.tokenizer)
        self._placement = place(checkpoint.config, model, engine)
        self._caching = engine.prefix_caching
        # The native library has threads of its own; torch's would only be in their way.
        torch.set_num_threads(1 if self._placement.is_native else threads)
        launched: list[DeviceShard] = []
        self._launcher: Launcher
        if self._placement.is_launched:
            launched = load_device_shards(checkpoint, self._placement, engine, open_weights)
            self._launcher = Runner(launched)
        else:
            shards = load_shards(checkpoint, self._placement, engine, threads, open_weights)
            self._launcher = SampledPipeline(Pipeline(shards, threads))
        self.eos_ids = checkpoint.eos_ids
        precision = str(self._placement.dtype).removeprefix("torch.")
        self.ready = Ready(
            slots=engine.max_slots,
            context=min(engine.max_context, self.memory().largest),
            kv_tokens=self._placement.kv_tokens,
            vocab=checkpoint.config.vocab,
            fingerprint=checkpoint.fingerprint(_numbers(precision, engine)),
            load_s=round(time.perf_counter() - started, 3),
            tokenizer=str(checkpoint.tokenizer),
            kernels=self._placement.kernels(launched or shards),
            dtype=precision,
        )

    @property
    def depth(self) -> int:
        return self._launcher.depth

    @property
    def lookahead(self) -> int:
        return self._placement.lookahead

    def memory(self) -> KVManager:
        """The bookkeeping of its KV cache, empty."""
        return self._placement.memory(self._caching)

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt."""
        return self._tokenizer.encode(prompt)

    def pieces(self) -> Pieces:
        """A fresh detokenizer for one sequence."""
        return self._tokenizer.pieces()

    def submit(self, step: Step) -> None:
        """Begin a step."""
        self._launcher.submit(step)

    def collect(self) -> Result:
        """The oldest step's picks, one for each of ``step.sampled``. Raises OutOfMemory."""
        try:
            return self._launcher.collect()
        except (MemoryError, RuntimeError) as error:
            if not is_shortage(error):
                raise
            # What the allocator keeps in pieces may do for the next, smaller step. No-op without a GPU.
            torch.cuda.empty_cache()
            raise OutOfMemory("a step found no memory to compute in") from error

    def drop(self) -> None:
        """Wait for the steps in flight and forget what came of them."""
        self._launcher.drop()


def _numbers(precision: str, engine: EngineSettings) -> str:
    """What the model computes in, and keeps weights, keys and values in, where that is not the same."""
    kept = f"{engine.kv_dtype} keys and values" if engine.kv_dtype != "auto" else None
    return "+".join(filter(None, (precision, engine.quantization, kept)))
