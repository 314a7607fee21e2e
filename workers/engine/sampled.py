"""A pipeline's steps, sampled on the host."""

from __future__ import annotations

import time
from collections import deque

import torch

from workers.engine.layout import lay_out
from workers.engine.model import Result
from workers.engine.pipeline import Pipeline
from workers.engine.sampler import sample
from workers.engine.scheduler import Step
from workers.engine.sequence import Sequence


class SampledPipeline:
    """Implements ``launcher.Launcher``."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._sampled: deque[list[Sequence]] = deque()  # of each step in flight

    @property
    def depth(self) -> int:
        return self._pipeline.depth

    def submit(self, step: Step) -> None:
        """See ``Launcher``."""
        self._sampled.append(step.sampled)
        self._pipeline.submit(lay_out(step))

    @torch.inference_mode()
    def collect(self) -> Result:
        """See ``Launcher``. Sampling counts as the last stage's."""
        sampled = self._sampled.popleft()
        logits, seconds = self._pipeline.collect()
        started = time.perf_counter()
        picks = sample(logits.cpu(), sampled)
        seconds[-1] += time.perf_counter() - started
        return Result(picks, max(seconds))

    def drop(self) -> None:
        """See ``Launcher``."""
        self._sampled.clear()
        self._pipeline.drop()
