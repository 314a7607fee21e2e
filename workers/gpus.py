"""The GPUs that this worker may use, as NVML sees them. A machine without NVML or GPUs has none, and nothing fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import structlog

from workers.visible_gpus import Card, Part, visible

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU at one moment. ``utilisation``: from 0 to 1; None where it does not say."""

    name: str
    used_bytes: int
    total_bytes: int
    utilisation: float | None


def holders(uuid: str) -> list[tuple[int, int]]:
    """Processes that have memory of a GPU, with their bytes; none where the driver does not say.

    uuid: of the GPU, or of a part of one, as torch tells it: without the word before it.
    """
    return Gpus().holders(uuid)


class Gpus:
    """The GPUs; found once."""

    def __init__(self) -> None:
        """Says in one line when there are none to be measured."""
        self.handles: dict[str, object] = {}
        self._all: dict[str, object] = {}  # by UUID, parts of GPUs among them
        try:
            import pynvml  # not everywhere, and of no use without a driver

            self._nvml = pynvml
            pynvml.nvmlInit()
            cards = [*self._cards()]
            chosen = visible(os.environ.get("CUDA_VISIBLE_DEVICES"), cards, os.environ.get("CUDA_DEVICE_ORDER"))
            self.handles = {name: self._all[uuid] for name, uuid in chosen.items()}
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

    def holders(self, uuid: str) -> list[tuple[int, int]]:
        """Processes that compute on a GPU and what each holds, in bytes. Other users' may not be told."""
        handle = self._all.get(f"GPU-{uuid}") or self._all.get(f"MIG-{uuid}")
        if handle is None:
            return []
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

    def _cards(self) -> Iterator[Card]:
        """Every GPU that this process may ask, in NVML's order."""
        for number in range(self._nvml.nvmlDeviceGetCount()):
            try:
                handle = self._nvml.nvmlDeviceGetHandleByIndex(number)
                uuid, model = self._nvml.nvmlDeviceGetUUID(handle), self._nvml.nvmlDeviceGetName(handle)
            except self._nvml.NVMLError as error:  # fallen off the bus, or another container's: CUDA sees none either
                log.info("gpu_not_read", gpu=str(number), error=str(error))
                continue
            self._all[uuid] = handle
            yield Card(uuid, model, self._parts(uuid, handle))

    def _parts(self, uuid: str, handle: object) -> tuple[Part, ...] | None:
        """The parts that a GPU is cut into (MIG), None for one that is whole."""
        nvml, parts = self._nvml, []
        try:
            if nvml.nvmlDeviceGetMigMode(handle)[0] != nvml.NVML_DEVICE_MIG_ENABLE:
                return None
        except nvml.NVMLError:  # a card that can't be cut
            return None
        for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
            except nvml.NVMLError:  # there may be gaps
                continue
            numbers = f"{nvml.nvmlDeviceGetGpuInstanceId(part)}/{nvml.nvmlDeviceGetComputeInstanceId(part)}"
            parts.append(Part(nvml.nvmlDeviceGetUUID(part), f"MIG-{uuid}/{numbers}"))
            self._all[parts[-1].uuid] = part
        return tuple(parts)
