"""A stage over pages on one device: decode steps padded to buckets, out of static buffers, as graphs on GPUs."""

from __future__ import annotations

import structlog
import torch
from torch import Tensor

from workers.engine.gpu.attention import Attention
from workers.engine.gpu.batches import DecodeBatch, MixedBatch
from workers.engine.gpu.graphs import capture
from workers.engine.gpu.inputs import DecodeInputs, bucket_of, buckets
from workers.engine.gpu.lane import Lane
from workers.engine.kv.paged import PAGE
from workers.engine.kv.pages import PageBuffers
from workers.engine.layout import Layout, Span
from workers.engine.sequence import Pages
from workers.engine.stage import Stage

log = structlog.get_logger(__name__)


class DeviceShard:
    """A stage, its pages, and the lane in which it works."""

    def __init__(self, stage: Stage, pages: PageBuffers, attention: Attention, slots: int, context: int) -> None:
        """pages: the last one of them is nobody's, for padding.  context: tokens of the longest sequence."""
        device = self.device = pages.device
        self.lane = Lane(device)
        self._stage = stage
        self._pages = pages
        self._attention = attention
        self._slots = slots
        self._scratch = pages.pages - 1
        self._inputs = DecodeInputs(slots, context, self._scratch, device)
        config = stage.config
        width = config.hidden if stage.head is None else config.vocab
        self._sampled = torch.arange(slots, device=device)
        # Token ids for the first stage, hidden states for the others.
        is_first = stage.embedding is not None and stage.embedding_norm is not None
        self._source = (
            torch.zeros(slots, dtype=torch.int64, device=device)
            if is_first
            else torch.zeros(slots, config.hidden, dtype=stage.dtype, device=device)
        )
        self._is_first = is_first
        self._out = torch.empty(slots, width, dtype=stage.dtype if stage.head is None else torch.float32, device=device)
        self._mixed = self._source  # what the next mixed step begins with
        self._width = self._inputs.tables.shape[1]
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    @property
    def kernels(self) -> str:
        """What computes attention, for people."""
        return self._attention.name

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compute a step of each kind, so that the first real one compiles nothing.

        Captures a graph of each bucket where the device and the attention can; the log says why if one fails.
        """
        is_gpu = self.device.type == "cuda"
        if is_gpu:
            # Weights and pages were written outside the lane, which does not wait for that by itself,
            torch.cuda.synchronize(self.device)
        with self.lane.enter():
            self._compute_mixed()
        if is_gpu:
            # nor do graphs wait for the lane.
            torch.cuda.synchronize(self.device)
        if not is_gpu or not self._attention.is_static:
            return
        try:
            self._graphs = capture(self._decode, buckets(self._slots), self.device)
        except Exception as error:  # Triton's own errors are of no common kind
            log.warning("graphs_not_used", device=str(self.device), reason=str(error)[:200])

    def _compute_mixed(self) -> None:
        """Compute a decode row and a prompt chunk, both in the page that is nobody's."""
        page = Pages([self._scratch])
        layout = Layout([0] * (1 + PAGE), [Span(page, 0), Span(page, 0, PAGE)], 1, [0, PAGE], [])
        self.take(layout, self._source.new_zeros(1 + PAGE, *self._source.shape[1:]))
        self.run(layout)

    def take(self, layout: Layout, source: Tensor) -> None:
        """Copy a step's token ids, [rows], or the hidden states of the stage before, [rows, hidden], from anywhere."""
        if len(layout.spans) > layout.decodes:
            self._mixed = source.to(self._source.device, non_blocking=True)
        else:
            self._source[: layout.decodes].copy_(source, non_blocking=True)

    def run(self, layout: Layout) -> Tensor:
        """Compute the step that was taken.

        Returns [rows, hidden], or fp32 logits [sampled, vocab] from the last stage; those of a decode step lie in a
        buffer that the next one overwrites.
        """
        if self._attention.reads_masked:
            self._pages.apply(layout.changes)
        if len(layout.spans) > layout.decodes:
            batch = MixedBatch(self._pages, self._attention, self._inputs, layout, self._mixed)
            return self._stage.forward(batch, None if self._is_first else self._mixed)
        bucket = bucket_of(layout.decodes, self._slots)
        longest = self._inputs.fill(layout.spans, bucket)
        graph = self._graphs.get(bucket)
        if graph is not None:
            graph.replay()
        else:
            # torch's attention gathers all that it is shown.
            self._width = self._inputs.tables.shape[1] if self._attention.is_static else longest
            self._decode(bucket)
        return self._out[: layout.decodes]

    def _decode(self, rows: int) -> None:
        """Compute a bucket from the static buffers into the static output."""
        source = self._source[:rows]
        batch = DecodeBatch(self._pages, self._attention, self._inputs, source, self._sampled[:rows], self._width)
        self._out[:rows].copy_(self._stage.forward(batch, None if self._is_first else source))
