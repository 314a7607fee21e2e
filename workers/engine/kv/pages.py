"""Paged keys and values in plain torch: what every faster kernel over pages must agree with, on any device.

Per layer one buffer of pages, [2, pages, heads, PAGE, head_dim], keys first. Attention gathers each row's pages.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workers.engine.draw import on_device
from workers.engine.kernels.attention import alibi_slopes, bias_of, weigh
from workers.engine.kv.manager import Change, Clear
from workers.engine.kv.paged import PAGE
from workers.engine.layout import Layout, Span
from workers.engine.sequence import Pages


class PageBuffers:
    """The pages of one stage's layers."""

    def __init__(
        self,
        layers: int,
        heads: int,
        head_dim: int,
        kv_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        slopes: Tensor | None = None,
    ) -> None:
        """Reserve the memory; zeros, since rows of a page that are not written yet are read and masked.

        slopes: of these heads, where they are not all of the model's.
        """
        shape = (2, kv_tokens // PAGE, heads, PAGE, head_dim)
        self.layers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.device = device
        self.slopes = (alibi_slopes(heads) if slopes is None else slopes).to(device)

    def write(self, layer: int, page: Tensor, slot: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store new tokens. page, slot: [tokens]; keys, values: [tokens, heads, head_dim]."""
        pages = self.layers[layer]
        pages[0][page, :, slot] = keys
        pages[1][page, :, slot] = values

    def gather(self, layer: int, tables: Tensor) -> Tensor:
        """The pages of these tables, a copy.

        tables: [spans, pages].  Returns [2, spans, pages, heads, PAGE, head_dim].
        """
        return self.layers[layer][:, tables]

    def apply(self, changes: list[Change]) -> None:
        """Clear pages; a host that launches does not wait."""
        pages: list[int] = []
        for change in changes:
            assert isinstance(change, Clear)
            assert isinstance(change.place, Pages)
            pages += change.place.table
        if pages:
            where = on_device(pages, self.device)
            for tensor in self._tensors():
                tensor.index_fill_(1, where, 0)

    def _tensors(self) -> list[Tensor]:
        """All that is kept, each [2, pages, ...]."""
        return self.layers

    def batch(self, layout: Layout) -> PagedBatch:
        """Turn a layout into tensors."""
        return PagedBatch(self, layout)


class PagedBatch:
    """A step over pages. Implements ``Batch``."""

    def __init__(self, buffers: PageBuffers, layout: Layout) -> None:
        device = buffers.device
        self.ids = torch.tensor(layout.ids, device=device)
        self.sampled = torch.tensor(layout.sampled, dtype=torch.int64, device=device)
        self._buffers = buffers
        where = [
            (_table(span)[position // PAGE], position % PAGE)
            for span in layout.spans
            for position in range(span.start, span.start + span.count)
        ]
        self._page, self._slot = torch.tensor(where, device=device).unbind(1)  # [tokens] each
        # All decode rows attend together; chunks, which differ in length by much, one by one.
        decodes, chunks = layout.spans[: layout.decodes], layout.spans[layout.decodes :]
        groups = ([decodes] if decodes else []) + [[chunk] for chunk in chunks]
        self._groups: list[_Group] = []
        first = 0
        for spans in groups:
            self._groups.append(_Group(buffers, spans, first))
            first += sum(span.count for span in spans)

    def attend(self, layer: int, qkv: Tensor, out: Tensor) -> None:
        """Store a layer's keys and values, and attend every row; shapes as in ``Batch``."""
        self._buffers.write(layer, self._page, self._slot, qkv[:, :, 1], qkv[:, :, 2])
        for group in self._groups:
            group.attend(layer, qkv, out)


class _Group:
    """Spans of one row count, padded to the longest table."""

    def __init__(self, buffers: PageBuffers, spans: list[Span], first: int) -> None:
        device = buffers.device
        count = spans[0].count
        self._buffers = buffers
        self._rows = slice(first, first + len(spans) * count)
        self._shape = (len(spans), count)
        used = [-(-(span.start + count) // PAGE) for span in spans]
        # Padded with a page of its own: what another sequence has there may not be finite.
        tables = [
            _table(span)[:pages] + _table(span)[:1] * (max(used) - pages)
            for span, pages in zip(spans, used, strict=True)
        ]
        self._tables = torch.tensor(tables, device=device)  # [spans, pages]
        starts = torch.tensor([span.start for span in spans], device=device)
        queries = starts[:, None] + torch.arange(count, device=device)  # [spans, count]
        bias = bias_of(buffers.slopes, torch.arange(max(used) * PAGE, device=device), queries)
        self._bias = bias.transpose(1, 2).flatten(0, 1)  # [spans * heads, count, length]

    def attend(self, layer: int, qkv: Tensor, out: Tensor) -> None:
        _, heads, _, head_dim = qkv.shape
        gathered = self._buffers.gather(layer, self._tables)
        keys, values = gathered.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # [spans * heads, length, head_dim]
        query = qkv[self._rows, :, 0].view(*self._shape, heads, head_dim).transpose(1, 2).flatten(0, 1)
        scratch = torch.empty_like(query)  # [spans * heads, count, head_dim]
        weigh(query, keys, values, self._bias, 1.0 / math.sqrt(head_dim), scratch)
        attended = scratch.view(self._shape[0], heads, self._shape[1], head_dim).transpose(1, 2)
        out[self._rows] = attended.flatten(0, 1)


def _table(span: Span) -> list[int]:
    assert isinstance(span.place, Pages)
    return span.place.table
