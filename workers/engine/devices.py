"""The devices that a model's stages may run on: this machine's own, or those that the settings name."""

from __future__ import annotations

from collections import Counter

from farm.errors import ModelRefused
from workers.engine.machine import free_bytes
from workers.engine.shard_plan import Device


def own_devices() -> list[Device]:
    """This machine's GPUs, or its free memory as one device."""
    import torch  # here, because a plan for other devices needs no driver

    return [_gpu(index) for index in range(torch.cuda.device_count())] or [Device("cpu", free_bytes())]


def named_devices(names: list[str]) -> list[Device]:
    """The devices of these names, in order; one that is named several times shares its memory out.

    Raises ModelRefused for a name that is no device of this machine.
    """
    import torch

    here = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    wrong = [name for name in names if name not in here]
    if wrong:
        raise ModelRefused(
            f"FARM_ENGINE__DEVICES names {wrong[0]!r}, which is not here; this machine has {', '.join(here)}"
        )
    times = Counter(names)
    sizes = {name: free_bytes() if name == "cpu" else _gpu(int(name.partition(":")[2])).bytes for name in times}
    return [Device(name, sizes[name] // times[name]) for name in names]


def _gpu(index: int) -> Device:
    import torch

    return Device(f"cuda:{index}", torch.cuda.get_device_properties(index).total_memory)
