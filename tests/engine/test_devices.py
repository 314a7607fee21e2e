"""GPUs that are not there, can't be used or are taken: one line that says what was found and what is needed.

No GPU is needed: what torch and NVML would say of one is put in their place.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from farm.errors import ModelRefused
from farm.settings import EngineSettings, ModelSettings, load_settings
from tests.commands import farm
from tests.engine.driving import drive
from workers.engine import bloom as bloom_module
from workers.engine import devices
from workers.engine.bloom import Bloom
from workers.engine.checkpoint import BloomConfig
from workers.engine.devices import held_by_others, named_devices, own_devices
from workers.engine.engine import Engine
from workers.engine.loading import place
from workers.engine.process import load_model
from workers.engine.protocol import Add, SamplingParams
from workers.engine.shard_plan import Device, ModelTooLarge

GIB = 1 << 30
NO_DRIVER = (
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from "
    "http://www.nvidia.com/Download/index.aspx"
)
TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)
NOT_YET = (
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices() that "
    "might have already set an error? Error 802: system not yet initialized"
)
OTHER_DRIVER = NOT_YET.replace(
    "802: system not yet initialized", "803: system has unsupported display driver / cuda driver combination"
)
NO_GPUS = "No CUDA GPUs are available"
BUSY = "CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCUDA kernel errors might be reported later."
SHAPE = BloomConfig(vocab=300, hidden=64, layers=2, heads=4)


class Machine:
    """What torch and NVML say: GPUs with free bytes, or an error in place of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self._patch = monkeypatch
        self.free: list[int | str] = []
        self.holders: dict[str, list[tuple[int, int]]] = {}
        self.refusal: str | None = None
        self.driver = tmp_path / "version"
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(self.free))
        monkeypatch.setattr(torch.cuda, "mem_get_info", self._memory)
        monkeypatch.setattr(torch.cuda, "init", self._init)
        monkeypatch.setattr(torch.cuda, "get_device_properties", self._properties)
        monkeypatch.setattr(devices, "holders", lambda uuid: self.holders.get(uuid, []))
        monkeypatch.setattr(devices, "_DRIVER", self.driver)

    def _memory(self, index: int) -> tuple[int, int]:
        free = self.free[index]
        if isinstance(free, str):
            raise RuntimeError(free)
        return free, 24 * GIB

    def _init(self) -> None:
        if self.refusal is not None:
            raise RuntimeError(self.refusal)

    def _properties(self, index: int) -> SimpleNamespace:
        self._init()
        return SimpleNamespace(uuid=f"uuid-of-{index}")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def test_a_gpu_counts_with_what_is_free(machine: Machine) -> None:
    """What another process holds is not planned with."""
    machine.free = [10 * GIB, 20 * GIB]
    assert own_devices() == [Device("cuda:0", 10 * GIB), Device("cuda:1", 20 * GIB)]
    assert named_devices(["cuda:1", "cuda:1"]) == [Device("cuda:1", 10 * GIB)] * 2


def test_a_machine_without_gpus_serves_from_its_cpu(machine: Machine) -> None:
    """Also with a CUDA build of torch, and where whoever started it hid the GPUs."""
    machine.refusal = NO_DRIVER
    assert [device.name for device in own_devices()] == ["cpu"]
    machine.driver.touch()
    with pytest.MonkeyPatch.context() as hidden:
        for nothing in ("", "-1", "NoDevFiles"):
            hidden.setenv("CUDA_VISIBLE_DEVICES", nothing)
            assert [device.name for device in own_devices()] == ["cpu"]


def test_gpus_behind_an_old_driver_are_not_passed_over(machine: Machine) -> None:
    """A worker that would compute on the CPU instead, at a hundredth of the speed, says so and what to do."""
    machine.driver.touch()
    machine.refusal = TOO_OLD
    with pytest.raises(
        ModelRefused, match=r"too old \(found version 11040\); it knows CUDA up to 11.4: update.*cpu"
    ) as said:
        own_devices()
    assert "\n" not in str(said.value)
    # torch counts GPUs by NVML where it can, which an old driver answers.
    machine.free = [TOO_OLD]
    with pytest.raises(
        ModelRefused, match=r"^cuda:0 can't be used: .*found version 11040\); it knows CUDA up to 11.4: up"
    ):
        own_devices()


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (NO_DRIVER, "no NVIDIA driver on your system; install NVIDIA's driver, give a container its GPUs"),
        (TOO_OLD, "too old .*; it knows CUDA up to 11.4: update the driver"),
        (NOT_YET, "Error 802: system not yet initialized; start NVIDIA's fabric manager"),
        (OTHER_DRIVER, "Error 803: system has unsupported display driver .*; restart the machine"),
        (NO_GPUS, "No CUDA GPUs are available; nvidia-smi says whether"),
    ],
    ids=["no driver", "old driver", "no fabric", "two drivers", "no card"],
)
def test_a_named_gpu_that_cuda_does_not_start_for_is_refused(machine: Machine, refusal: str, said: str) -> None:
    """The line names the GPU, what there is, why, and the remedy for just that."""
    machine.refusal = refusal
    with pytest.raises(
        ModelRefused, match=f"names 'cuda:0'.* this machine has cpu: CUDA 13.0 does not start: .*{said}"
    ):
        named_devices(["cuda:0"])


@pytest.mark.parametrize("named", [["cuda:0"], ["cuda"], []], ids=["an index", "no index", "unset"])
def test_a_variable_that_leaves_no_gpu_is_named(
    named: list[str], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever set CUDA_VISIBLE_DEVICES to a GPU that is not there reads that this is why."""
    machine.driver.touch()
    machine.refusal = NO_GPUS
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "9")
    with pytest.raises(ModelRefused, match="CUDA_VISIBLE_DEVICES=9 leaves none: name GPUs that nvidia-smi -L lists"):
        _ = named_devices(named) if named else own_devices()


def test_a_torch_without_cuda_is_named(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names a GPU under a CPU build reads which build it takes."""
    assert machine.free == []
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ModelRefused, match=r"torch \S+ is built without CUDA; install a build with it"):
        named_devices(["cuda:0"])


def test_an_index_that_is_not_there_names_those_that_are(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the variable that may hide it."""
    machine.free = [GIB]
    with pytest.raises(ModelRefused, match=r"'cuda:1', which is not here; this machine has cpu, cuda:0$"):
        named_devices(["cuda:1"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(ModelRefused, match=r"cuda:0 \(CUDA_VISIBLE_DEVICES=3\)$"):
        named_devices(["cuda:1"])


def test_a_gpu_that_can_not_be_asked_is_refused_in_one_line(machine: Machine) -> None:
    """A card that another process holds for itself, say, or one that is full; with the process, if the driver tells."""
    for refusal in (BUSY, "CUDA error: out of memory\nCUDA kernel errors might be reported later."):
        machine.free, machine.holders = [GIB, refusal], {}
        with pytest.raises(ModelRefused, match=r"^cuda:1 can't be used: CUDA error: [^\n]*; end the process") as said:
            own_devices()
        assert "\n" not in str(said.value)
        machine.holders = {"uuid-of-1": [(4711, 20 * GIB)], "uuid-of-0": [(12, 20 * GIB)]}
        with pytest.raises(ModelRefused, match=r"; process 4711 holds 21,474,836,480 bytes of cuda:1: end it, or"):
            own_devices()


def test_what_torch_raises_when_it_starts_late_is_a_refusal_too(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error for calls that waited for CUDA is no RuntimeError."""

    def late() -> None:
        raise torch.cuda.DeferredCudaCallError(
            "CUDA call failed lazily at initialization with error: X\n\nCUDA call was"
        )

    assert machine.free == []
    monkeypatch.setattr(torch.cuda, "init", late)
    with pytest.raises(ModelRefused, match="does not start: CUDA call failed lazily at initialization with error: X; "):
        named_devices(["cuda:0"])


def test_a_cpu_and_gpus_are_not_mixed(machine: Machine) -> None:
    """Stages on both would wait for each other's copies in ways that nobody has made sure of."""
    machine.free = [20 * GIB]
    with pytest.raises(
        ModelRefused, match=r"^FARM_ENGINE__DEVICES names the CPU beside GPUs; name devices of one kind$"
    ):
        place(SHAPE, ModelSettings(), EngineSettings(devices=["cuda:0", "cpu"]))


def test_too_little_free_memory_names_who_holds_it(machine: Machine) -> None:
    """The missing bytes, and the processes with a GiB or more; this one's own memory is no news."""
    machine.free = [GIB // 1024]
    machine.holders = {"uuid-of-0": [(4711, 20 * GIB), (12, GIB // 2), (os.getpid(), 2 * GIB)]}
    with pytest.raises(
        ModelTooLarge, match=r"bytes are missing on cuda:0.*; process 4711 holds [\d,]+ bytes of cuda:0: "
    ) as said:
        place(BloomConfig(vocab=5000, hidden=256, layers=4, heads=4), ModelSettings(), EngineSettings())
    assert "process 12 " not in str(said.value)
    assert str(os.getpid()) not in str(said.value)
    assert said.value.missing
    machine.holders = {}
    assert held_by_others([Device("cuda:0", 1), Device("cpu", 1)]) == ""


def test_a_gpu_that_is_not_here_is_one_line_of_the_command() -> None:
    """Of this very machine: exit code 1 and what it has."""
    said = farm("plan", ENGINE__DEVICES="cuda:97")
    assert said.code == 1
    assert "FARM_ENGINE__DEVICES names 'cuda:97', which is not here; this machine has cpu" in said.err
    assert len(said.err.splitlines()) == 1


def test_a_gpu_that_is_full_at_loading_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own error ends the worker with one line, not with a respawn for ever; another error is not hidden."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.92 GiB.\nGPU 0 has a total capacity of …")

    def broken(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(bloom_module, "load_shards", full)
    with pytest.raises(
        ModelRefused, match=r"no memory to load tiny-bloom: CUDA out of memory.* 1.92 GiB.; `farm plan`"
    ):
        load_model(load_settings({}))
    monkeypatch.setattr(bloom_module, "load_shards", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        load_model(load_settings({}))


@pytest.mark.parametrize(
    "shortage",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.92 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_step_that_finds_a_gpu_full_is_counted_and_the_engine_goes_on(
    shortage: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shrinks, computes everything anew, and the text is the same."""
    model = Bloom(ModelSettings(), EngineSettings(devices=["cpu"], kv_layout="paged", threads=1))
    ask = Add("job", "Once upon a time", SamplingParams(max_tokens=12, ignore_eos=True))
    wanted = _tokens(Engine(model, 16), ask)
    collect, calls = model._launcher._pipeline.collect, 0

    def full_at_the_fifth() -> tuple[torch.Tensor, list[float]]:
        nonlocal calls
        found, calls = collect(), calls + 1
        if calls == 5:
            raise shortage
        return found

    monkeypatch.setattr(model._launcher._pipeline, "collect", full_at_the_fifth)
    engine = Engine(model, 16)
    assert _tokens(engine, ask) == wanted
    assert engine.stats.out_of_memory == 1
    assert engine.stats.preemptions == 1


def _tokens(engine: Engine, ask: Add) -> list[int]:
    return drive(engine, [ask])["job"].ids
