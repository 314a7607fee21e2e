"""The metrics of workers, beside those of the ledger. Declarations only; ``workers.collectors`` fills them.

A worker with an engine has ``MODEL``, one without ``SYSTEM``; where NVML finds GPUs the former has ``GPU`` too.
"""

from __future__ import annotations

from farm.metrics import Family
from workers.account import E2E_BOUNDS, QUEUE_BOUNDS, TPOT_BOUNDS, TTFT_BOUNDS
from workers.engine.tally import BATCH_BOUNDS, STEP_BOUNDS

WORKER_UP = Family("farm_worker_up", "gauge", "1 while this worker takes jobs, else 0.", ("worker", "model"))
MODEL_INFO = Family(
    "farm_model_info",
    "gauge",
    "Always 1; what is served, in which precision and by which kernels. Absent until it is loaded.",
    ("model", "revision", "dtype", "fingerprint", "kernels"),
)
MODEL_LOAD = Family(
    "farm_model_load_seconds", "gauge", "How long the latest engine took to load the model.", (), "seconds"
)
SLOTS = Family("farm_slots", "gauge", "Sequences that the engine can generate for at once.")
SLOTS_IN_USE = Family("farm_slots_in_use", "gauge", "Sequences that the engine generates for now.")
KV_IN_USE = Family("farm_kv_tokens_in_use", "gauge", "Tokens of KV memory that running sequences hold.", (), "tokens")
KV_CAPACITY = Family("farm_kv_tokens_capacity", "gauge", "Tokens of KV memory that there are.", (), "tokens")
BATCH_SIZE = Family(
    "farm_batch_size",
    "histogram",
    "Sequences that got a token from a decode step.",
    (),
    "",
    tuple(map(float, BATCH_BOUNDS)),
    "Doublings, as kernels and graphs are chosen.",
)
STEP = Family(
    "farm_step_seconds",
    "histogram",
    "Time of an engine's step, in its slowest stage.",
    (),
    "seconds",
    STEP_BOUNDS,
    "A tiny model's millisecond, a large one's 5 to 50 ms on GPUs, a second on CPUs.",
)
TTFT = Family(
    "farm_ttft_seconds",
    "histogram",
    "From a job's submission to its first token in the ledger.",
    (),
    "seconds",
    TTFT_BOUNDS,
    "An idle farm's tens of milliseconds, the second that people wait for, the time in a long queue.",
)
TPOT = Family(
    "farm_time_per_output_token_seconds",
    "histogram",
    "A job's mean time from one token to the next, in the attempt that ended it.",
    (),
    "seconds",
    TPOT_BOUNDS,
    "From a tiny model's to a large one's on a CPU, finest where people read along.",
)
QUEUE_TIME = Family(
    "farm_queue_time_seconds",
    "histogram",
    "From a job's submission to its first claim.",
    (),
    "seconds",
    QUEUE_BOUNDS,
    "The few milliseconds of a dispatch with room, then the minutes and hours of a batch.",
)
E2E = Family(
    "farm_e2e_seconds",
    "histogram",
    "From a job's submission to its end, of jobs that a worker ended.",
    (),
    "seconds",
    E2E_BOUNDS,
    "A short answer on an idle farm up to a batch's hours in the queue.",
)
TOKENS = Family(
    "farm_tokens_total",
    "counter",
    "What became of the tokens that were computed: the token account.",
    ("kind",),
    "tokens",
)
ENGINE_TOKENS = Family(
    "farm_engine_tokens_total",
    "counter",
    "Tokens that the engine computed: prefill, for prompts and what is resumed; decode, sampled.",
    ("phase",),
    "tokens",
)
CACHED = Family(
    "farm_cached_prompt_tokens_total",
    "counter",
    "Prompt tokens that were not computed, since another prompt had begun with them.",
    (),
    "tokens",
)
STEPS = Family("farm_engine_steps_total", "counter", "Steps of the engine.")
PREEMPTIONS = Family(
    "farm_preemptions_total", "counter", "Sequences that gave their KV memory back and were computed again."
)
OUT_OF_MEMORY = Family(
    "farm_engine_out_of_memory_total", "counter", "Steps that found no memory and were tried again smaller."
)
RESTARTS = Family("farm_engine_restarts_total", "counter", "Engines that died or hung.")
GPU_MEMORY_USED = Family(
    "farm_gpu_memory_used_bytes", "gauge", "Memory of a GPU in use, by whomever.", ("gpu",), "bytes"
)
GPU_MEMORY_TOTAL = Family("farm_gpu_memory_total_bytes", "gauge", "Memory of a GPU.", ("gpu",), "bytes")
GPU_UTILISATION = Family(
    "farm_gpu_utilisation_ratio",
    "gauge",
    "Share of the last moment in which a GPU computed anything, from 0 to 1.",
    ("gpu",),
    "ratio",
)
WEBHOOK_DELIVERIES = Family(
    "farm_webhook_deliveries_total",
    "counter",
    "Calls of webhooks: ok, failed (it may be tried again), gone (the receiver said 410), refused (not called).",
    ("outcome",),
)

MODEL = (
    WORKER_UP,
    MODEL_INFO,
    MODEL_LOAD,
    SLOTS,
    SLOTS_IN_USE,
    KV_IN_USE,
    KV_CAPACITY,
    BATCH_SIZE,
    STEP,
    TTFT,
    TPOT,
    QUEUE_TIME,
    E2E,
    TOKENS,
    ENGINE_TOKENS,
    CACHED,
    PREEMPTIONS,
    OUT_OF_MEMORY,
    STEPS,
    RESTARTS,
)
GPU = (GPU_MEMORY_USED, GPU_MEMORY_TOTAL, GPU_UTILISATION)
SYSTEM = (WORKER_UP, WEBHOOK_DELIVERIES)
