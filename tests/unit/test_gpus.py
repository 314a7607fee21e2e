"""Which GPUs a worker measures and asks: CUDA and NVML number them differently; UUIDs are the same for both."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from workers.gpus import Gpu, Gpus, holders
from workers.visible_gpus import Card, Part, hides_all, visible

pytestmark = pytest.mark.fast

GIB = 1 << 30
WHOLE = [Card("GPU-aa11", "A100"), Card("GPU-aa22", "A100"), Card("GPU-bb33", "A100")]
PARTS = (Part("MIG-cc11", "MIG-GPU-dd44/1/0"), Part("MIG-cc22", "MIG-GPU-dd44/2/0"))
CUT = [Card("GPU-aa11", "A100"), Card("GPU-dd44", "A100", PARTS), Card("GPU-ee55", "A100", ())]


@pytest.mark.parametrize(
    ("chosen", "uuids"),
    [
        (None, ["GPU-aa11", "GPU-aa22", "GPU-bb33"]),
        ("", []),
        ("2,0", ["GPU-bb33", "GPU-aa11"]),
        (" 1 , 2 ", ["GPU-aa22", "GPU-bb33"]),
        ("0,7,1", ["GPU-aa11"]),
        ("0,-1,1", ["GPU-aa11"]),
        ("1gpu,2", ["GPU-aa22", "GPU-bb33"]),
        ("1,1", []),
        ("none", []),
        ("GPU-bb33,GPU-aa11", ["GPU-bb33", "GPU-aa11"]),
        ("GPU-b", ["GPU-bb33"]),
        ("GPU-aa2,1", []),
        ("GPU-bb33,GPU-aa", ["GPU-bb33"]),
        ("GPU-bb33,GPU-zz,GPU-aa11", ["GPU-bb33"]),
        ("MIG-cc11", []),
    ],
)
def test_a_process_gets_the_gpus_that_the_variable_names(chosen: str | None, uuids: list[str]) -> None:
    """Numbers, UUIDs, UUIDs cut short; what names no GPU or more than one ends the list, one named twice empties it."""
    assert list(visible(chosen, WHOLE).values()) == uuids


@pytest.mark.parametrize(
    ("chosen", "uuids"),
    [
        (None, ["GPU-aa11", "MIG-cc11"]),
        ("1", ["MIG-cc11"]),
        ("2", []),
        ("MIG-cc22", ["MIG-cc22"]),
        ("MIG-cc2", ["MIG-cc22"]),
        ("MIG-GPU-dd44/2/0", ["MIG-cc22"]),
        ("MIG-cc", []),
        ("MIG-cc11,GPU-aa11", ["MIG-cc11", "GPU-aa11"]),
        ("GPU-dd44", []),
    ],
)
def test_parts_of_gpus_are_devices_of_their_own(chosen: str | None, uuids: list[str]) -> None:
    """A card that is cut into parts (MIG) is none itself; where its number is given, it stands for its first part."""
    assert list(visible(chosen, CUT).values()) == uuids


def test_numbers_that_mean_two_gpus_are_not_guessed() -> None:
    """CUDA puts the fastest first, NVML follows the bus: with unlike cards only UUIDs, or the bus' order, tell."""
    mixed = [Card("GPU-1", "T4"), Card("GPU-2", "H100")]
    assert visible("1", mixed) == visible("1", mixed, "PCI_BUS_ID") == {"1": "GPU-2"}
    with pytest.raises(
        ValueError, match="CUDA_DEVICE_ORDER=FASTEST_FIRST orders unlike cards by speed; set PCI_BUS_ID"
    ):
        visible("1", mixed, "FASTEST_FIRST")
    assert visible("GPU-2", mixed, "FASTEST_FIRST") == {"GPU-2": "GPU-2"}
    assert visible(None, mixed, "FASTEST_FIRST") == {"0": "GPU-1", "1": "GPU-2"}
    assert visible("1", WHOLE, "FASTEST_FIRST") == {"1": "GPU-aa22"}


@pytest.mark.parametrize("chosen", [None, "0", " 9,1", "GPU-1", "MIG-1"])
def test_a_variable_that_names_a_gpu_hides_not_all(chosen: str | None) -> None:
    """Also when that GPU turns out not to be there: somebody wants one."""
    assert not hides_all(chosen)


@pytest.mark.parametrize("chosen", ["", "-1", " ", "NoDevFiles", "none"])
def test_a_variable_that_names_none_is_meant_to(chosen: str) -> None:
    """Schedulers set it so for those to whom they gave no GPU."""
    assert hides_all(chosen)


class Nvml(SimpleNamespace):
    """What pynvml says of a T4, of an H100 in two parts, and of a card that fell off the bus."""

    NVMLError = OSError
    NVML_DEVICE_MIG_ENABLE = 1

    def nvmlInit(self) -> None: ...  # noqa: N802

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 4

    def nvmlDeviceGetHandleByIndex(self, number: int) -> str:  # noqa: N802
        if number == 0:
            raise OSError("GPU is lost")
        return ["", "t4", "h100", "full"][number]

    def nvmlDeviceGetUUID(self, handle: str) -> str:  # noqa: N802
        return f"MIG-{handle}" if "/" in handle else f"GPU-{handle}"

    def nvmlDeviceGetName(self, handle: str) -> str:  # noqa: N802
        return handle

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:  # noqa: N802
        if handle == "t4":
            raise OSError("not supported")
        return [1, 1] if handle == "h100" else [0, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: str) -> int:  # noqa: N802
        assert handle == "h100"
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: str, number: int) -> str:  # noqa: N802
        if number not in (1, 4):
            raise OSError("not found")
        return f"{handle}/{number}"

    def nvmlDeviceGetGpuInstanceId(self, handle: str) -> int:  # noqa: N802
        return int(handle[-1])

    def nvmlDeviceGetComputeInstanceId(self, handle: str) -> int:  # noqa: N802
        assert "/" in handle
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(used=len(handle), total=GIB)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:  # noqa: N802
        if "/" in handle:
            raise OSError("not supported")
        return SimpleNamespace(gpu=50)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:  # noqa: N802
        if handle == "t4":
            raise OSError("not supported")
        return [SimpleNamespace(pid=len(handle), usedGpuMemory=GIB), SimpleNamespace(pid=8, usedGpuMemory=None)]


@pytest.fixture(autouse=True)
def _nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())  # type: ignore[arg-type]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)


def test_metrics_are_of_the_gpus_that_the_worker_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the names by which they were given; a part has no utilisation of its own, and a lost card is left out."""
    names = ["0", "1", "2"]
    assert [(gpu.name, gpu.used_bytes) for gpu in Gpus().read()] == list(zip(names, [2, 6, 4], strict=True))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-h100/4,GPU-f")
    assert Gpus().read() == [Gpu("MIG-h100/4", 6, GIB, None), Gpu("GPU-f", 4, GIB, 0.5)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert Gpus().read() == []


def test_holders_are_found_by_uuid_whatever_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch tells a GPU's UUID without the word before it; a size that is not told is no size."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert holders("full") == [(4, GIB)]
    assert holders("h100/1") == [(6, GIB)]
    assert holders("t4") == holders("elsewhere") == []


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing fails."""
    monkeypatch.setitem(sys.modules, "pynvml", None)  # type: ignore[arg-type]
    assert Gpus().read() == holders("full") == []
