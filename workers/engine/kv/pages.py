"""Paged keys and values in plain torch: what every faster kernel over pages must agree with, on any device.

Per layer one buffer of pages, [2, pages, heads, PAGE, head_dim], keys first. Attention gathers each row's pages.
Numbers are kept in the dtype that attention computes in, or in 8 bits with scales.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.draw import on_device
from workers.engine.kernels.attention import alibi_slopes, bias_of, weigh
from workers.engine.kv.eight_bits import quantize
from workers.engine.kv.manager import Change, Clear
from workers.engine.kv.paged import PAGE
from workers.engine.layout import Layout, Span
from workers.engine.sequence import Pages


@dataclass(frozen=True, slots=True)
class PageLayer:
    """One layer's pages."""

    numbers: Tensor
    """[2, pages, heads, PAGE, head_dim]; 8-bit floats as uint8, since not every device can index them."""
    scales: Tensor | None
    """What undoes the rounding to 8 bits: fp32 [2, pages, heads, PAGE, 1]."""
    kept: torch.dtype | None
    """int8 or float8_e4m3fn. None: numbers are kept as they are computed, and have no scales."""

    @classmethod
    def of(
        cls, pages: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device, kept: torch.dtype | None
    ) -> PageLayer:
        """Reserve the memory; zeros, since rows of a page that are not written yet are read and masked."""
        if kept is not None:
            dtype = torch.int8 if kept is torch.int8 else torch.uint8
        numbers = torch.zeros(2, pages, heads, PAGE, head_dim, dtype=dtype, device=device)
        scales = None if kept is None else torch.zeros(2, pages, heads, PAGE, 1, device=device)
        return cls(numbers, scales, kept)

    def tensors(self) -> list[Tensor]:
        """All that is kept, each [2, pages, heads, PAGE, numbers of a token]."""
        return [self.numbers] if self.scales is None else [self.numbers, self.scales]

    def write(self, page: Tensor, slot: Tensor, kv: Tensor) -> None:
        """Store new tokens. page, slot: [tokens]; kv: [tokens, heads, 2, head_dim]."""
        if self.scales is not None and self.kept is not None:
            small, scale = quantize(kv, self.kept)
            self.scales[:, page, :, slot] = scale.transpose(1, 2)
            kv = small.view(self.numbers.dtype)
        self.numbers[:, page, :, slot] = kv.transpose(1, 2)  # [tokens, 2, heads, head_dim]

    def gather(self, tables: Tensor, dtype: torch.dtype) -> Tensor:
        """The pages of these tables as numbers to compute with, a copy.

        tables: [spans, pages], int64.  Returns [2, spans, pages, heads, PAGE, head_dim].
        """
        found = self.numbers[:, tables]
        if self.scales is None or self.kept is None:
            return found
        return found.view(self.kept).to(dtype).mul_(self.scales[:, tables])


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
        kept: torch.dtype | None = None,
    ) -> None:
        """Reserve the memory.

        slopes: of these heads, where they are not all of the model's.  kept: as in ``PageLayer``.
        """
        self.pages = kv_tokens // PAGE
        self.layers = [PageLayer.of(self.pages, heads, head_dim, dtype, device, kept) for _ in range(layers)]
        self.device = device
        self.slopes = (alibi_slopes(heads) if slopes is None else slopes).to(device)

    def apply(self, changes: list[Change]) -> None:
        """Clear pages; a host that launches does not wait."""
        pages: list[int] = []
        for change in changes:
            assert isinstance(change, Clear)
            assert isinstance(change.place, Pages)
            pages += change.place.table
        if pages:
            where = on_device(pages, self.device)
            for layer in self.layers:
                for tensor in layer.tensors():
                    tensor.index_fill_(1, where, 0)

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
        self._buffers.layers[layer].write(self._page, self._slot, qkv[:, :, 1:])
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
        gathered = self._buffers.layers[layer].gather(self._tables, qkv.dtype)
        keys, values = gathered.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # [spans * heads, length, head_dim]
        query = qkv[self._rows, :, 0].view(*self._shape, heads, head_dim).transpose(1, 2).flatten(0, 1)
        scratch = torch.empty_like(query)  # [spans * heads, count, head_dim]
        weigh(query, keys, values, self._bias, 1.0 / math.sqrt(head_dim), scratch)
        attended = scratch.view(self._shape[0], heads, self._shape[1], head_dim).transpose(1, 2)
        out[self._rows] = attended.flatten(0, 1)


def _table(span: Span) -> list[int]:
    assert isinstance(span.place, Pages)
    return span.place.table
