"""Runs steps through the stages of a model without waiting for any: lanes follow each other by marks.

The ids that a step gives stay on their device, where the next one finds them; the host reads them later. On a CPU the
same code computes each step as it is submitted.
"""

from __future__ import annotations

import traceback
from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.engine.draw import on_device
from workers.engine.gpu.lane import Mark
from workers.engine.gpu.shard import DeviceShard
from workers.engine.layout import Layout, lay_out
from workers.engine.model import Result
from workers.engine.sampler import Drawn, begin
from workers.engine.scheduler import Step
from workers.engine.sequence import Sequence


@dataclass(slots=True)
class _Job:
    """A step in flight. ``rows`` says which row of ``tokens`` a sequence got; ``marks`` are of its stages."""

    rows: dict[Sequence, int]
    marks: list[tuple[Mark, Mark]] = field(default_factory=list)
    tokens: Tensor | None = None
    drawn: Drawn | None = None
    done: Mark | None = None
    error: Exception | None = None


class Runner:
    """Steps in flight, oldest first. Implements ``launcher.Launcher``."""

    def __init__(self, shards: list[DeviceShard]) -> None:
        self._shards = shards
        self._jobs: deque[_Job] = deque()
        # When the stage after each had taken its output, which may then be overwritten.
        self._taken: list[Mark | None] = [None] * len(shards)

    @property
    def depth(self) -> int:
        return len(self._shards)

    def submit(self, step: Step) -> None:
        """Launch a step. What goes wrong is said when it is collected."""
        layout, sampled = lay_out(step), step.sampled
        job = _Job({sequence: row for row, sequence in enumerate(sampled)})
        failed = next((other.error for other in self._jobs if other.error is not None), None)
        try:
            if failed is None:
                self._launch(layout, sampled, job)
            else:
                job.error = failed  # its tokens may follow on those of that step
        except Exception as error:
            # What the step held is free again at once: the next try is made of it.
            traceback.clear_frames(error.__traceback__)
            job.error = error
        self._jobs.append(job)

    def collect(self) -> Result:
        """The oldest step's picks. Raises what went wrong."""
        job = self._jobs.popleft()
        if job.error is not None:
            raise job.error
        assert job.drawn is not None
        assert job.done is not None
        job.done.wait()
        return Result(job.drawn.picks(), max(end.seconds_since(start) for start, end in job.marks))

    def drop(self) -> None:
        """Wait until nothing is in flight and forget it."""
        while self._jobs:
            job = self._jobs.popleft()
            if job.done is not None:
                job.done.wait()
        for shard in self._shards:
            with shard.lane.enter():
                shard.lane.mark().wait()

    @torch.inference_mode()
    def _launch(self, layout: Layout, sampled: list[Sequence], job: _Job) -> None:
        first = self._shards[0]
        with first.lane.enter():
            tensor = self._ids(layout, sampled)
        before: Mark | None = None
        for number, shard in enumerate(self._shards):
            with shard.lane.enter():
                shard.lane.follow(before)
                shard.lane.keep(tensor)
                shard.take(layout, tensor)
                if number:
                    self._taken[number - 1] = shard.lane.mark()
                shard.lane.follow(self._taken[number])
                start = shard.lane.mark()  # behind all that it waits for
                tensor = shard.run(layout)
                if shard is self._shards[-1]:
                    drawn = begin(tensor, sampled, [sequence.next_index for sequence in sampled])
                    job.tokens, job.drawn = drawn.tokens, drawn.to_host()
                before = shard.lane.mark()
            job.marks.append((start, before))
        job.done = before

    def _ids(self, layout: Layout, sampled: list[Sequence]) -> Tensor:
        """The step's token ids on the first device, [rows]: those that are not known yet, out of the steps before."""
        lane, device = self._shards[0].lane, self._shards[0].device
        ids = on_device(layout.ids, device, torch.int64)
        wanted: dict[int, tuple[list[int], list[int]]] = {}
        for row in layout.unknown:
            # A decode row is the row of its sequence among those sampled.
            number = next(n for n in reversed(range(len(self._jobs))) if sampled[row] in self._jobs[n].rows)
            rows, places = wanted.setdefault(number, ([], []))
            rows.append(row)
            places.append(self._jobs[number].rows[sampled[row]])
        for number, (rows, places) in wanted.items():
            job = self._jobs[number]
            assert job.tokens is not None
            lane.follow(job.done)
            lane.keep(job.tokens)
            found = job.tokens.to(device, non_blocking=True)
            ids[on_device(rows, device)] = found[on_device(places, device)]
        return ids
