"""The devices that a model's stages may run on: this machine's own, or those that the settings name.

A GPU counts with the memory that is free on it, not with all it has. Whoever can't be given what was asked reads in one
line what was found and what is needed.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from farm.errors import ModelRefused
from workers.engine.machine import free_bytes
from workers.engine.shard_plan import Device
from workers.gpus import holders
from workers.visible_gpus import hides_all

_DRIVER = Path("/proc/driver/nvidia/version")
_HELD_BYTES = 1 << 30
"""What others hold of a GPU is named from this much on: a context of one's own takes some hundred MB."""
_GPU = "cuda:"
_NUMBERED = re.compile(r"Error \d+: .+")
_OLD_DRIVER = re.compile(r"found version (\d+)")
_REMEDIES = {
    "no NVIDIA driver": "install NVIDIA's driver, give a container its GPUs (docker run --gpus all), or set "
    "FARM_ENGINE__DEVICES=cpu",
    "system not yet initialized": "start NVIDIA's fabric manager (systemctl start nvidia-fabricmanager), which GPUs "
    "behind an NVSwitch wait for",
    "driver combination": "restart the machine, so that the driver that is loaded is the one that is installed",
    "forward compatibility": "update the driver, or take the cuda-compat package out of LD_LIBRARY_PATH",
}
"""By what torch or CUDA says."""
_TAKEN = ("busy or unavailable", "exclusive", "out of memory")


def own_devices() -> list[Device]:
    """This machine's GPUs, or its free memory as one device.

    Raises ModelRefused where there are GPUs that can't be used: a CPU would serve, at a hundredth of the speed.
    """
    import torch  # here, because a plan for other devices needs no driver

    count = torch.cuda.device_count()
    if count:
        return [_gpu(index) for index in range(count)]
    wrong = gpu_trouble()
    is_meant = hides_all(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if torch.version.cuda is not None and _DRIVER.exists() and wrong is not None and not is_meant:
        raise ModelRefused(f"this machine has GPUs, but {wrong}; or set FARM_ENGINE__DEVICES=cpu to do without")
    return [Device("cpu", free_bytes())]


def named_devices(names: list[str], bytes_of: Callable[[str], int] | None = None) -> list[Device]:
    """The devices of these names, in order; one that is named several times shares its memory out.

    bytes_of: what counts as a device's memory, if not what is free.
    Raises ModelRefused for a name that is no device of this machine.
    """
    import torch

    here = ["cpu", *(f"{_GPU}{index}" for index in range(torch.cuda.device_count()))]
    wrong = [name for name in names if name not in here]
    if wrong:
        trouble = gpu_trouble() if wrong[0].startswith("cuda") and len(here) == 1 else None
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        cut = f" (CUDA_VISIBLE_DEVICES={visible})" if visible is not None and not trouble else ""
        raise ModelRefused(
            f"FARM_ENGINE__DEVICES names {wrong[0]!r}, which is not here; this machine has {', '.join(here)}{cut}"
            + (f": {trouble}" if trouble else "")
        )
    times = Counter(names)
    sizes = {name: (bytes_of or _free)(name) for name in times}
    return [Device(name, sizes[name] // times[name]) for name in names]


def gpu_trouble() -> str | None:
    """Why torch can use no GPU here, and what would help; None if it can, or sees none and complains of nothing."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install a build with it"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError) as error:
        return f"CUDA {torch.version.cuda} does not start: {_reason(error)}; {_remedy(error)}"
    return None


def held_by_others(devices: Sequence[Device]) -> str:
    """Which of these GPUs others have memory of, and who, for a message; "" if none."""
    said = []
    for name in dict.fromkeys(device.name for device in devices if device.name.startswith(_GPU)):
        uuid = _uuid(int(name.removeprefix(_GPU)))
        found = holders(uuid) if uuid is not None else []
        taken = [(pid, held) for pid, held in found if pid != os.getpid() and held >= _HELD_BYTES]
        said += [f"process {pid} holds {held:,} bytes of {name}" for pid, held in taken]
    return f"{', '.join(said)}: end it, or name other GPUs in FARM_ENGINE__DEVICES" if said else ""


def _free(name: str) -> int:
    return free_bytes() if name == "cpu" else _gpu(int(name.partition(":")[2])).bytes


def _gpu(index: int) -> Device:
    import torch

    name = f"{_GPU}{index}"
    try:
        free, _total = torch.cuda.mem_get_info(index)
    except (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError) as error:
        # An unusable driver, a card that fell off the bus, one held exclusively, one without room for a context.
        held = held_by_others([Device(name, 0)]) if _is_taken(error) else ""
        raise ModelRefused(f"{name} can't be used: {_reason(error)}; {held or _remedy(error)}") from error
    return Device(name, free)


def _uuid(index: int) -> str | None:
    """What a GPU is called whoever counts; None if torch can't say."""
    import torch

    try:
        return str(torch.cuda.get_device_properties(index).uuid)
    except (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError):
        return None


def _reason(error: Exception) -> str:
    """What went wrong, without torch's advice around it, in one line.

    It says "Found no NVIDIA driver on your system. Please …", "… driver on your system is too old (found …). Please …",
    "Unexpected error from …. Did you …? Error 802: system not yet initialized".
    """
    first = str(error).strip().partition("\n")[0]
    numbered = _NUMBERED.search(first)
    return numbered[0] if numbered else first.partition(". ")[0].rstrip(". ")


def _remedy(error: Exception) -> str:
    text, visible = str(error), os.environ.get("CUDA_VISIBLE_DEVICES")
    old = _OLD_DRIVER.search(text)
    if old:
        newest = f"{int(old[1]) // 1000}.{int(old[1]) % 1000 // 10}"
        return f"it knows CUDA up to {newest}: update the driver, or install a torch for an older CUDA"
    if "No CUDA GPUs" in text and visible is not None:
        return f"CUDA_VISIBLE_DEVICES={visible} leaves none: name GPUs that nvidia-smi -L lists, or unset it"
    if _is_taken(error):
        return "end the process that holds it (nvidia-smi shows it), or name other GPUs in FARM_ENGINE__DEVICES"
    known = (remedy for said, remedy in _REMEDIES.items() if said in text)
    return next(known, "nvidia-smi says whether the driver sees it")


def _is_taken(error: Exception) -> bool:
    return any(said in str(error) for said in _TAKEN)
