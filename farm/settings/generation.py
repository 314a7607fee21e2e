"""The model, the engine that runs it, and the worker around both."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from farm.contracts import model_name
from farm.settings.base import Group, names


class ModelSettings(Group):
    id: str = "tiny-bloom"
    """A hub id, a folder with a Bloom checkpoint, or tiny-bloom, which comes with the farm."""
    revision: str | None = None
    """The hub's branch, tag or commit."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: float32 on a CPU, bfloat16 on a GPU."""

    @property
    def name(self) -> str:
        """The model's short name, as in the queue ``farm.<name>``."""
        return model_name(self.id)


class EngineSettings(Group):
    kind: Literal["bloom", "synthetic"] = "bloom"
    """synthetic makes tokens up without a model, to measure or test the farm around it."""
    max_slots: int = Field(64, ge=1, le=1024)
    """How many sequences run at once. More use a step better, and make it longer."""
    max_context: int = Field(2048, ge=8)
    """Prompt and completion tokens of one sequence at the most. Bloom was trained on 2,048."""
    kv_bytes: int | None = Field(None, ge=1 << 16)
    """Memory for keys and values. Unset: on CPUs what half of the slots need at full length, up to a quarter of the
    free memory; on GPUs what all need, up to what is free."""
    kv_layout: Literal["auto", "contiguous", "paged"] = "auto"
    """How keys and values lie: in one piece per sequence, best on CPUs, or in pages of 16 tokens, best on GPUs."""
    kv_dtype: Literal["auto", "int8", "fp8"] = "auto"
    """Numbers that keys and values are kept in. auto: the model's dtype. int8 and fp8 take about half of bfloat16's
    memory, with a scale per token and head, and lie in pages; less exact, int8 the less wrong of the two."""
    lookahead: int | None = Field(None, ge=0, le=1)
    """Steps begun before the tokens of the one before are known, so that a GPU need not wait for its host; over pages.
    Unset: 1 on GPUs, 0 on CPUs, which have nothing to wait for."""
    prefix_caching: bool = True
    """Compute equal beginnings of one tenant's prompts once."""
    prefill_budget: int = Field(128, ge=1)
    """Prompt tokens computed beside the running sequences in one step."""
    prefill_slowdown: float = Field(2.5, ge=1)
    """How many times as long as without it a step may take while it computes part of a longer prompt than the budget;
    1 puts running sequences first, a large number the prompts."""
    devices: list[str] = Field([])
    """Where the model's stages run, first to last, with commas between them: "cpu,cpu" is two stages that share the
    threads. Unset: all GPUs of the machine, or one stage on the CPU."""
    tensor_parallel: int = Field(1, ge=1, le=64)
    """How many processes share every layer, a device of DEVICES each; on a CPU they share its cores. A divisor of the
    model's attention heads. For a model too large, or too slow, for one GPU; stages are not combined with it."""
    native: Literal["auto", "off"] = "auto"
    """auto: on CPUs the C++ kernels, compiled at the first start if there is a compiler, and on GPUs those in Triton,
    each used if it passes a test. off: torch's."""
    quantization: Literal["int8"] | None = None
    """int8: weights of 8 bits with a scale per row, and likewise what they are multiplied with. Faster, less exact."""
    threads: int | None = Field(None, ge=1, le=1024)
    """Threads of the forward pass. Unset: the cores that this process may use."""
    watchdog_s: float = Field(60.0, gt=0)
    """An engine that has work and finishes no step for this long is killed and started again."""
    load_timeout_s: float = Field(1800.0, gt=0)
    """An engine that has not loaded its model by then is killed and started again."""
    max_deaths: int = Field(5, ge=1)
    """After so many deaths in a row, without a job's token in between, the worker calls its engine failing. More than
    KEEPER__MAX_STRIKES: one prompt that kills engines is no engine that is broken."""
    respawn_cap_s: float = Field(30.0, gt=0)
    """The longest wait before a dead engine is started again. The first is a quarter of a second, each further one
    twice as long."""
    synthetic_step_s: float = Field(0.0, ge=0)
    """How long a step of the synthetic engine takes."""
    synthetic_faults: list[str] = Field([])
    """What the synthetic engine does to prompts that hold a word, for tests: WORD=die@K, WORD=die+K or WORD=fail*N, as
    ``workers.engine.faults`` explains, with commas between them."""

    @field_validator("devices", "synthetic_faults", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return names(value)


class WorkerSettings(Group):
    name: str | None = None
    """The worker's name, the same after a restart and used by no other. Unset: the host's name and process id."""
    role: Literal["model", "system"] = "model"
    """model generates; system has no engine: it keeps queues moving, drives batches and calls webhooks."""
    heartbeat_file: Path | None = None
    """Touched while steps progress; a liveness probe reads its age."""
    drain_s: float = Field(4.0, gt=0)
    """How long a terminated worker may take to hand its jobs back."""
