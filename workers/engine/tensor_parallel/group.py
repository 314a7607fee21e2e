"""The ranks as a group that adds and gathers tensors: NCCL between GPUs, gloo on the CPU.

Uses torch's default process group, so a process is in one group at a time. Nothing listens beyond loopback.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta

import torch
from torch import Tensor, distributed

from workers.engine.shard_plan import Device
from workers.engine.tensor_parallel.wire import Setup

_LOOPBACK = "lo"


def backend_of(devices: Sequence[Device]) -> str:
    """nccl where each rank has a GPU of its own, else gloo: NCCL takes no GPU twice."""
    names = {device.name for device in devices}
    return "nccl" if len(names) == len(devices) and "cpu" not in names else "gloo"


class Group:
    """One rank's end. Every rank must make the same calls in the same order; a call waits for all others'.

    A rank that is gone makes gloo raise RuntimeError and NCCL wait for ever: rank 0 watches the others (``ranks``).
    """

    def __init__(self, setup: Setup) -> None:
        self.rank = setup.rank
        self.exchanges = 0
        """Calls in which this rank took part."""
        self._setup = setup
        self._device = torch.device(setup.device)

    def join(self) -> None:
        """Wait until all ranks are there. Raises RuntimeError if that takes longer than the setup's timeout."""
        setup = self._setup
        # The ranks are of one machine. gloo would listen where the host's name points to, NCCL at any interface.
        for library in ("GLOO", "NCCL"):
            os.environ[f"{library}_SOCKET_IFNAME"] = _LOOPBACK
        is_nccl = setup.backend == "nccl"
        distributed.init_process_group(
            setup.backend,
            init_method=f"file://{setup.meeting}",
            rank=setup.rank,
            world_size=setup.ranks,
            timeout=timedelta(seconds=setup.timeout_s),
            device_id=self._device if is_nccl else None,
        )
        # Connections are made at the first call at the latest; the file is not needed after it.
        self.sum(torch.zeros(1, device=self._device))

    def sum(self, x: Tensor) -> Tensor:
        """Add up the ranks' tensors, in place; every rank gets the same numbers."""
        self.exchanges += 1
        distributed.all_reduce(x)
        return x

    def agree(self, is_well: bool) -> bool:
        """Whether all is well at every rank."""
        return not self.sum(torch.tensor([0.0 if is_well else 1.0], device=self._device)).item()

    def gather(self, x: Tensor, widths: list[int]) -> Tensor | None:
        """The ranks' columns side by side at rank 0, None at the others.

        x: [rows, max(widths)], of which the rank's first ``widths[rank]`` columns count.
        Returns [rows, sum(widths)], on the CPU where gloo gathers, which does so there only.
        """
        if self._setup.backend == "gloo":
            x = x.cpu()
        pieces = None if self.rank else [torch.empty_like(x) for _ in widths]
        self.exchanges += 1
        distributed.gather(x, pieces, dst=0)
        if pieces is None:
            return None
        return torch.cat([piece[:, :width] for piece, width in zip(pieces, widths, strict=True)], 1)
