"""One rank with its part of the model and of the KV cache: what rank 0 and the others have in common."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from workers.engine.batch import Batch, Batcher
from workers.engine.checkpoint import Checkpoint
from workers.engine.gpu.attention import TorchAttention
from workers.engine.gpu.batches import StepBatches
from workers.engine.gpu.selftest import best_attention
from workers.engine.kernels.attention import alibi_slopes
from workers.engine.kv.cache import KVCache
from workers.engine.kv.pages import PageBuffers
from workers.engine.layout import Layout
from workers.engine.shortage import is_shortage
from workers.engine.tensor_parallel.cut import Rank
from workers.engine.tensor_parallel.group import Group
from workers.engine.tensor_parallel.stage import RankStage
from workers.engine.tensor_parallel.wire import Setup
from workers.engine.weights import Weights


class RankShortage(MemoryError):
    """A rank found no memory for a step, and every rank has given the step up."""


class _Batches(Protocol):
    def batch(self, layout: Layout) -> Batch: ...


class Member:
    """One rank. After ``join`` every rank runs the same layouts in the same order."""

    @torch.inference_mode()
    def __init__(self, checkpoint: Checkpoint, setup: Setup) -> None:
        """Load this rank's part straight to its device. Sets torch's thread count.

        Raises ModelRefused for damaged weights, MemoryError.
        """
        torch.set_num_threads(setup.threads)
        config, rank, device = checkpoint.config, Rank(setup.rank, setup.ranks), torch.device(setup.device)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # where NCCL and Triton launch
        dtype: torch.dtype = getattr(torch, setup.dtype)
        heads = rank.share(config.heads)
        slopes = alibi_slopes(config.heads)[heads.start : heads.stop]
        sizes = (config.layers, len(heads), config.head_dim, setup.kv_tokens, dtype)
        self.group = Group(setup)
        with Weights(checkpoint, dtype, setup.device) as weights:
            self._stage = RankStage(weights, rank, self.group)
        self.kernels = "torch"
        """What computes attention, for people."""
        self._memory: KVCache | PageBuffers
        self._batches: _Batches
        if setup.is_paged:
            use_triton = device.type == "cuda" and setup.native
            attention = best_attention(device, len(heads), config.head_dim, dtype) if use_triton else TorchAttention()
            self.kernels = attention.name
            self._memory = PageBuffers(*sizes, device, slopes)
            self._batches = StepBatches(self._memory, attention, setup.slots, setup.context)
        else:
            self._memory = KVCache(*sizes)
            self._batches = Batcher(self._memory, slopes)
            self._stage.warm_up(setup.slots)

    def join(self) -> None:
        """Wait until all ranks are there."""
        self.group.join()

    @torch.inference_mode()
    def run(self, layout: Layout) -> Tensor | None:
        """Compute a step with the others. Returns fp32 logits [sampled, vocab] at rank 0, None at the others.

        Raises RankShortage at every rank if one found no memory; any other error leaves the others waiting.
        """
        batch: Batch | None = None
        try:
            batch = self._prepare(layout)
        except (MemoryError, RuntimeError) as error:
            if not is_shortage(error):
                raise
        if not self.group.agree(batch is not None) or batch is None:
            raise RankShortage
        logits, is_well = None, True
        try:
            logits = self._stage.forward(batch)
        except (MemoryError, RuntimeError) as error:
            if not is_shortage(error):
                raise
            is_well = False
        if not is_well:
            self._stage.stand_in(batch)
        if not self.group.agree(is_well):
            raise RankShortage
        return logits

    def _prepare(self, layout: Layout) -> Batch:
        self._memory.apply(layout.changes)
        return self._batches.batch(layout)
