"""A stage of the model with its part of the KV cache: what the pipeline runs."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.engine.batch import Batch, Batcher
from workers.engine.kv.arena import Block
from workers.engine.kv.cache import KVCache
from workers.engine.kv.pages import PageBuffers
from workers.engine.layout import Layout, Span
from workers.engine.native.stage import NativeStage
from workers.engine.stage import Stage


class ContiguousShard:
    """A stage over contiguous blocks, on the CPU."""

    kernels = "torch"

    def __init__(self, stage: Stage, cache: KVCache) -> None:
        self._stage = stage
        self._cache = cache
        self._batcher = Batcher(cache)

    def run(self, layout: Layout, hidden: Tensor | None) -> Tensor:
        """Compute a step; see ``pipeline.Shard``."""
        self._cache.apply(layout.changes)
        return self._stage.forward(self._batcher.batch(layout), hidden)


class NativeShard:
    """A stage over contiguous blocks, computed by the native library."""

    kernels = "native"

    def __init__(self, stage: NativeStage, cache: KVCache) -> None:
        self._stage = stage
        self._cache = cache

    def run(self, layout: Layout, hidden: Tensor | None) -> Tensor:
        """Compute a step; see ``pipeline.Shard``."""
        self._cache.apply(layout.changes)
        source = torch.tensor(layout.ids) if hidden is None else hidden
        spans = torch.tensor([_place(span) for span in layout.spans])
        return self._stage.forward(source, spans, torch.tensor(layout.sampled, dtype=torch.int64), self._cache)


class PagedShard:
    """A stage over pages, on any device."""

    kernels = "torch"

    def __init__(self, stage: Stage, pages: PageBuffers) -> None:
        self._stage = stage
        self._pages = pages

    def run(self, layout: Layout, hidden: Tensor | None) -> Tensor:
        """Compute a step; see ``pipeline.Shard``."""
        self._pages.apply(layout.changes)
        batch: Batch = self._pages.batch(layout)
        if hidden is not None:
            hidden = hidden.to(self._pages.device, non_blocking=True)
        return self._stage.forward(batch, hidden)


def _place(span: Span) -> tuple[int, int, int, int]:
    assert isinstance(span.place, Block)
    return span.place.offset, span.place.size, span.start, span.count
