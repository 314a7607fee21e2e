"""Which models are generated with, and who takes part on each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks import environment
from benchmarks.compare.contender import Contender
from benchmarks.workload import BENCHMARK
from farm.settings import setting_names
from workers.engine.checkpoint import BloomConfig

STATIC_BATCH = 16
BASELINE = "static_16"
REFERENCE = "one_by_one"


@dataclass(frozen=True, slots=True)
class Case:
    """A random Bloom, how much is asked of it, and how often each kind of contender is run."""

    name: str
    config: BloomConfig
    scale: float
    """How much wider than the embedding's the blocks' random weights are: see ``workload``."""
    requests: int
    kv_gib: int
    """Memory for keys and values, the same for every engine that reserves it."""
    rounds: int = 3
    """Of the fast contenders; transformers has one, which takes longer than all of theirs."""
    budget_s: float = 235.0
    """No further round is begun that would not fit: `make bench` is to take about ten minutes on two cores."""
    naive_requests: int | None = None
    """How many the naive farm gets, where all would take too long."""


CASES = {
    case.name: case
    for case in (
        Case("small", BENCHMARK, 4.0, requests=64, kv_gib=1, rounds=5),
        Case(
            "560m",
            BloomConfig(vocab=32_768, hidden=1024, layers=24, heads=16),
            4.25,  # the blocks' spread is three times the usual 0.02
            requests=16,
            kv_gib=2,
            budget_s=325.0,
            naive_requests=4,
        ),
        Case("tiny", BloomConfig(vocab=300, hidden=48, layers=2, heads=3), 6.0, requests=4, kv_gib=1, rounds=1),
    )
}
"""``tiny`` is for the benchmark's own tests."""


def contenders(case: Case, *, quick: bool = False) -> list[Contender]:
    """All that may take part, slow ones first. ``quick``: one round of each."""
    known = [
        Contender(REFERENCE, "transformers, one by one", "transformers_generate", options={"batch": 1}),
        Contender(
            "naive_celery",
            "naive Celery farm, one prompt a task, prefork 2",
            "naive_celery",
            options={"processes": 2},
            requests=case.naive_requests,
        ),
        *_static(case),
        Contender(
            "openvino",
            "OpenVINO GenAI, continuous batching",
            "openvino_genai_cb",
            case.rounds,
            options={"kv_gib": case.kv_gib},
        ),
        Contender(
            "openvino_int8",
            "OpenVINO GenAI, int8 weights",
            "openvino_genai_cb",
            case.rounds,
            options={"kv_gib": case.kv_gib, "int8": True},
            precision="int8",
        ),
        Contender(
            "vllm",
            "vLLM on the CPU",
            "vllm_offline",
            case.rounds,
            options={"kv_gib": case.kv_gib, "context": 512},
        ),
        *_ours(case),
    ]
    return [replace(contender, rounds=1) for contender in known] if quick else known


def _static(case: Case) -> list[Contender]:
    batch = {"batch": STATIC_BATCH}
    plain = Contender(BASELINE, "transformers, static 16", "transformers_generate", options=batch)
    if case.requests <= STATIC_BATCH:
        return [plain]  # sorting within the one batch changes nothing
    label = "transformers, static 16 sorted by output length"
    options = {**batch, "by_length": True}
    return [plain, Contender("static_16_sorted", label, "transformers_generate", options=options)]


def _ours(case: Case) -> list[Contender]:
    # Every round asks the same again: found in the cache, prompts would cost nothing from the second round on.
    kv = {"FARM_ENGINE__KV_BYTES": str(case.kv_gib << 30), "FARM_ENGINE__PREFIX_CACHING": "false"}
    return [
        Contender(
            "engine", "Bloomfarm's engine alone", "farm_engine", case.rounds, settings=kv, environ=environment.ENGINE
        ),
        Contender("farm", "Bloomfarm end to end", "farm_local", case.rounds, settings=kv),
        Contender(
            "farm_torch",
            "Bloomfarm end to end, without the native kernels",
            "farm_local",
            case.rounds,
            settings=kv | {"FARM_ENGINE__NATIVE": "off"},
        ),
        Contender(
            "farm_int8",
            "Bloomfarm end to end, int8 weights",
            "farm_local",
            case.rounds,
            settings=kv | {"FARM_ENGINE__QUANTIZATION": "int8"},
            precision="int8",
        ),
    ]


def why_not(contender: Contender) -> str | None:
    """Why this farm can't have such a contender: it lacks a setting."""
    unknown = sorted(set(contender.settings) - set(setting_names()))
    return f"this farm has no setting {', '.join(unknown)}" if unknown else None
