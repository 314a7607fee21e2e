"""Stages at work on several steps at once: while one computes its layers of a step, the next computes those before it.

A single stage is computed by whoever collects; each of several has a thread. Steps keep their order in every stage.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from workers.engine.layout import Layout


class Shard(Protocol):
    """A stage of the model with its part of the KV cache, on one device."""

    @property
    def kernels(self) -> str:
        """What computes, for people."""

    def run(self, layout: Layout, hidden: Tensor | None) -> Tensor:
        """Compute its layers of a step.

        hidden: [rows, hidden] from the stage before; None for the first, which reads ``layout.ids``.
        Returns [rows, hidden], or fp32 logits [sampled, vocab] from the last one.
        """


@dataclass(slots=True)
class _Job:
    """A step on its way through the stages."""

    layout: Layout
    tensor: Tensor | None = None
    error: Exception | None = None
    seconds: list[float] = field(default_factory=list)


class Pipeline:
    """Runs steps through shards, in order."""

    def __init__(self, shards: list[Shard], threads: int) -> None:
        """threads: of torch's, for all shards together."""
        self._shards = shards
        self._waiting: deque[_Job] = deque()
        self._queues: list[queue.SimpleQueue[_Job]] = []
        if len(shards) > 1:
            self._queues = [queue.SimpleQueue() for _ in range(len(shards) + 1)]
            for number, shard in enumerate(shards):
                threading.Thread(
                    target=self._work,
                    args=(shard, number, max(1, threads // len(shards))),
                    name=f"stage-{number}",
                    daemon=True,
                ).start()

    @property
    def depth(self) -> int:
        return len(self._shards)

    def submit(self, layout: Layout) -> None:
        """Begin a step."""
        job = _Job(layout)
        self._waiting.append(job)
        if self._queues:
            self._queues[0].put(job)

    def collect(self) -> tuple[Tensor, list[float]]:
        """The oldest step's logits, and the seconds of each stage. Raises what a stage raised."""
        job = self._waiting.popleft()
        if self._queues:
            done = self._queues[-1].get()
            assert done is job
        else:
            _advance(job, self._shards[0])
        if job.error is not None:
            raise job.error
        assert job.tensor is not None
        return job.tensor, job.seconds

    def drop(self) -> None:
        """Wait until nothing is in flight; results and errors are lost."""
        while self._waiting:
            job = self._waiting.popleft()
            if self._queues:
                done = self._queues[-1].get()
                assert done is job

    def _work(self, shard: Shard, number: int, threads: int) -> None:
        torch.set_num_threads(threads)
        while True:
            job = self._queues[number].get()
            if job.error is None:
                _advance(job, shard)
            self._queues[number + 1].put(job)


@torch.inference_mode()
def _advance(job: _Job, shard: Shard) -> None:
    started = time.perf_counter()
    try:
        job.tensor = shard.run(job.layout, job.tensor)
        _finish(job.tensor.device)
    except Exception as error:
        job.error, job.tensor = error, None
    job.seconds.append(time.perf_counter() - started)


def _finish(device: torch.device) -> None:
    """Return once the device has computed what it was given: a GPU goes on when its kernels are launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
