"""The devices that a model's stages may run on: this machine's own, or those that the settings name.

A GPU counts with the memory that is free on it, not with all it has. Whoever can't be given what was asked reads in one
line what was found and what is needed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from farm.errors import ModelRefused
from workers.engine.machine import free_bytes
from workers.engine.shard_plan import Device
from workers.gpus import holders

_DRIVER = Path("/proc/driver/nvidia/version")
_HELD_BYTES = 1 << 30
"""What others hold of a GPU is named from this much on: a context of one's own takes some hundred MB."""
_GPU = "cuda:"


def own_devices() -> list[Device]:
    """This machine's GPUs, or its free memory as one device.

    Raises ModelRefused where there are GPUs that can't be used: a CPU would serve, at a hundredth of the speed.
    """
    import torch  # here, because a plan for other devices needs no driver

    count = torch.cuda.device_count()
    if count:
        return [_gpu(index) for index in range(count)]
    wrong = gpu_trouble()
    if torch.version.cuda is not None and _DRIVER.exists() and wrong is not None and not _hides_gpus():
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
        trouble = gpu_trouble() if wrong[0].startswith(_GPU) else None
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
    except RuntimeError as error:
        # Of several lines: "Found no NVIDIA driver on your system", "… driver on your system is too old (found …)".
        return f"CUDA {torch.version.cuda} does not start: {_first_sentence(error)}; {_remedy(error)}"
    return None


def held_by_others(devices: Sequence[Device]) -> str:
    """Which of these GPUs others have memory of, and who, for a message; "" if none."""
    said = []
    for name in dict.fromkeys(device.name for device in devices if device.name.startswith(_GPU)):
        found = holders(int(name.removeprefix(_GPU)))
        taken = [(pid, held) for pid, held in found if pid != os.getpid() and held >= _HELD_BYTES]
        said += [f"process {pid} holds {held:,} bytes of {name}" for pid, held in taken]
    return f"{', '.join(said)}: end it, or name other GPUs in FARM_ENGINE__DEVICES" if said else ""


def _free(name: str) -> int:
    return free_bytes() if name == "cpu" else _gpu(int(name.partition(":")[2])).bytes


def _gpu(index: int) -> Device:
    import torch

    try:
        free, _total = torch.cuda.mem_get_info(index)
    except RuntimeError as error:  # an unusable driver, a card that fell off the bus, one held exclusively
        raise ModelRefused(f"{_GPU}{index} can't be used: {_first_sentence(error)}; {_remedy(error)}") from error
    return Device(f"{_GPU}{index}", free)


def _remedy(error: RuntimeError) -> str:
    text = str(error)
    if "too old" in text:
        return "update the driver, or install a torch for an older CUDA"
    if "no NVIDIA driver" in text:
        return "install NVIDIA's driver, or set FARM_ENGINE__DEVICES=cpu"
    if "busy or unavailable" in text or "exclusive" in text or "out of memory" in text:
        return "end the process that holds it (nvidia-smi shows it), or name other GPUs in FARM_ENGINE__DEVICES"
    return "nvidia-smi says whether the driver sees it"


def _first_sentence(error: RuntimeError) -> str:
    """What went wrong, without torch's advice after it, in one line."""
    first = str(error).strip().partition("\n")[0]
    return first.partition(". ")[0].rstrip(". ")


def _hides_gpus() -> bool:
    """Whether whoever started this process gave it no GPU."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
