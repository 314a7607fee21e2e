"""Steps over pages as batches: decode steps from static buffers, and steps with prompt chunks, made anew each time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from workers.engine.draw import on_device
from workers.engine.gpu.attention import Attention, Chunks
from workers.engine.gpu.inputs import DecodeInputs, pack, pages_of, places
from workers.engine.kv.pages import PageBuffers
from workers.engine.layout import Layout


class StepBatches:
    """Makes a batch of any step, unpadded, one step at a time."""

    def __init__(self, pages: PageBuffers, attention: Attention, slots: int, context: int) -> None:
        """context: tokens of the longest sequence."""
        self._pages = pages
        self._attention = attention
        self._inputs = DecodeInputs(slots, context, 0, pages.device)

    def batch(self, layout: Layout) -> DecodeBatch | MixedBatch:
        """Turn a layout into tensors."""
        pages, attention, inputs = self._pages, self._attention, self._inputs
        ids = on_device(layout.ids, pages.device, torch.int64)
        if len(layout.spans) > layout.decodes:
            return MixedBatch(pages, attention, inputs, layout, ids)
        longest = inputs.fill(layout.spans, layout.decodes)
        sampled = on_device(layout.sampled, pages.device, torch.int64)
        width = inputs.tables.shape[1] if attention.is_static else longest
        return DecodeBatch(pages, attention, inputs, ids, sampled, width)


class DecodeBatch:
    """Decode rows out of static inputs. Implements ``batch.Batch``."""

    def __init__(
        self, pages: PageBuffers, attention: Attention, inputs: DecodeInputs, ids: Tensor, sampled: Tensor, width: int
    ) -> None:
        """ids, sampled: [rows].  width: how much of the tables is read."""
        rows = len(sampled)
        self.ids = ids
        self.sampled = sampled
        self._pages = pages
        self._attention = attention
        self._tables = inputs.tables[:rows, :width]
        self._lengths = inputs.lengths[:rows]

    def attend(self, layer: int, qkv: Tensor, out: Tensor) -> None:
        """See ``batch.Batch``."""
        pages = self._pages
        self._attention.decode(qkv, pages.layers[layer], self._tables, self._lengths, pages.slopes, out)


class MixedBatch:
    """Decode rows, then prompt chunks. Implements ``batch.Batch``."""

    def __init__(
        self, pages: PageBuffers, attention: Attention, inputs: DecodeInputs, layout: Layout, ids: Tensor
    ) -> None:
        """ids: [tokens]. Fills the static inputs with the decode rows."""
        device = pages.device
        self.ids = ids
        self.sampled = on_device(layout.sampled, device, torch.int64)
        self._pages = pages
        self._attention = attention
        self._decodes = layout.decodes
        decodes, chunks = layout.spans[: layout.decodes], layout.spans[layout.decodes :]
        if decodes:
            longest = inputs.fill(decodes, len(decodes))
            # One width for kernels that are compiled for it; torch gathers all that it is shown.
            width = inputs.tables.shape[1] if attention.is_static else longest
            self._tables = inputs.tables[: layout.decodes, :width]
            self._lengths = inputs.lengths[: layout.decodes]
        page, slot = places(layout)
        self._page, self._slot = on_device(page, device), on_device(slot, device)  # [chunks' tokens] each
        tables = np.zeros((len(chunks), max(map(pages_of, chunks))), dtype=np.int32)
        pack(tables, chunks)
        known, first = [], layout.decodes
        for span in chunks:
            known.append((first, span.start, span.count))
            first += span.count
        spans = on_device([number for span in known for number in span], device, torch.int32).view(-1, 3)
        flat = on_device(tables.ravel().tolist(), device, torch.int32)
        self._chunks = Chunks(flat.view(tables.shape), spans, known)

    def attend(self, layer: int, qkv: Tensor, out: Tensor) -> None:
        """See ``batch.Batch``."""
        pages, slopes, first = self._pages.layers[layer], self._pages.slopes, self._decodes
        if first:
            self._attention.decode(qkv[:first], pages, self._tables, self._lengths, slopes, out[:first])
        self._attention.store(qkv[first:], pages, self._page, self._slot)
        self._attention.prefill(qkv, pages, self._chunks, slopes, out)
