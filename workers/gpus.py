"""The GPUs that this worker may use, as NVML sees them. A machine without NVML or GPUs has none, and nothing fails."""

from __future__ import annotations

import os
from dataclasses import dataclass

import structlog

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU at one moment. ``utilisation``: from 0 to 1; None where it does not say."""

    name: str
    used_bytes: int
    total_bytes: int
    utilisation: float | None


def holders(index: int) -> list[tuple[int, int]]:
    """Processes that have memory of a GPU, with their bytes; none where the driver does not say.

    index: CUDA's, among those that CUDA_VISIBLE_DEVICES names.
    """
    gpus = Gpus()
    handle = next(iter([*gpus.handles.values()][index : index + 1]), None)
    return [] if handle is None else gpus.holders(handle)


class Gpus:
    """The GPUs; found once."""

    def __init__(self) -> None:
        """Says in one line when there are none to be measured."""
        self.handles: dict[str, object] = {}
        try:
            import pynvml  # not everywhere, and of no use without a driver

            self._nvml = pynvml
            pynvml.nvmlInit()
            self.handles = {name: self._find(name) for name in self._visible()}
        except Exception as error:
            log.info("no_gpu_metrics", reason=str(error) or type(error).__name__)

    def read(self) -> list[Gpu]:
        """Each as it is now; one that can't be asked is left out."""
        found = []
        for name, handle in self.handles.items():
            try:
                found.append(self._read(name, handle))
            except self._nvml.NVMLError as error:
                log.debug("gpu_not_read", gpu=name, error=str(error))
        return found

    def holders(self, handle: object) -> list[tuple[int, int]]:
        """Processes that compute on a GPU and what each holds, in bytes. Other users' may not be told."""
        try:
            found = self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except self._nvml.NVMLError as error:
            log.debug("gpu_not_read", error=str(error))
            return []
        return [(int(one.pid), int(one.usedGpuMemory)) for one in found if one.usedGpuMemory is not None]

    def _read(self, name: str, handle: object) -> Gpu:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        try:
            utilisation = self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        except self._nvml.NVMLError:  # a part of a GPU (MIG) has none
            utilisation = None
        return Gpu(name, int(memory.used), int(memory.total), utilisation)

    def _visible(self) -> list[str]:
        """Numbers or UUIDs of those that CUDA may use."""
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
        if chosen is not None:
            return [name.strip() for name in chosen.split(",") if name.strip() and name.strip() != "-1"]
        return [str(number) for number in range(self._nvml.nvmlDeviceGetCount())]

    def _find(self, name: str) -> object:
        if name.isdigit():
            handle: object = self._nvml.nvmlDeviceGetHandleByIndex(int(name))
        else:
            handle = self._nvml.nvmlDeviceGetHandleByUUID(name)
        return handle
