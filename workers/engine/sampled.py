"""A pipeline's steps, sampled on the host."""

from __future__ import annotations

import time
from collections import deque

import torch

from workers.engine.layout import in_memory_order, lay_out
from workers.engine.model import Result
from workers.engine.pipeline import Pipeline
from workers.engine.sampler import sample
from workers.engine.scheduler import Step
from workers.engine.sequence import Sequence


class SampledPipeline:
    """Implements ``launcher.Launcher``."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        # Of each step in flight, the sequences that get a token: as the step has them, and in the rows' order.
        self._sampled: deque[tuple[list[Sequence], list[Sequence]]] = deque()

    @property
    def depth(self) -> int:
        return self._pipeline.depth

    def submit(self, step: Step) -> None:
        """See ``Launcher``. Decode rows whose memory is contiguous are computed in its order."""
        ordered = in_memory_order(step)
        self._sampled.append((step.sampled, ordered.sampled))
        self._pipeline.submit(lay_out(ordered))

    @torch.inference_mode()
    def collect(self) -> Result:
        """See ``Launcher``. Sampling counts as the last stage's."""
        wanted, rows = self._sampled.popleft()
        logits, seconds = self._pipeline.collect()
        started = time.perf_counter()
        picks = dict(zip(rows, sample(logits.cpu(), rows), strict=True))
        seconds[-1] += time.perf_counter() - started
        return Result([picks[sequence] for sequence in wanted], max(seconds))

    def drop(self) -> None:
        """See ``Launcher``."""
        self._sampled.clear()
        self._pipeline.drop()
