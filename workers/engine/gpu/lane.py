"""The order of work on a device: a CUDA stream with events between streams; on a CPU all happens as it is called."""

from __future__ import annotations

import contextlib
import time
from contextlib import AbstractContextManager

import torch
from torch import Tensor


class Mark:
    """A place in a lane's work."""

    def __init__(self, event: torch.cuda.Event | None) -> None:
        self.event = event
        self.at_s = time.perf_counter()

    def wait(self) -> None:
        """Hold the host until the lane has got there."""
        if self.event is not None:
            self.event.synchronize()

    def seconds_since(self, before: Mark) -> float:
        """The lane's time between two marks; both must have been reached."""
        if self.event is not None and before.event is not None:
            return float(before.event.elapsed_time(self.event)) / 1000
        return self.at_s - before.at_s


class Lane:
    """Work of one stage, in order."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def enter(self) -> AbstractContextManager[object]:
        """What is launched inside goes into this lane, on its device."""
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def mark(self) -> Mark:
        """Mark the end of the work so far. Inside ``enter``."""
        if self._stream is None:
            return Mark(None)
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return Mark(event)

    def follow(self, mark: Mark | None) -> None:
        """Begin nothing more before another lane has got to the mark. The host goes on."""
        if self._stream is not None and mark is not None and mark.event is not None:
            self._stream.wait_event(mark.event)

    def keep(self, tensor: Tensor) -> None:
        """Note that a tensor of another lane is used here, so that its memory is not given away before."""
        if self._stream is not None and tensor.device.type == "cuda":
            tensor.record_stream(self._stream)
