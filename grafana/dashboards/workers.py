"""Workers & engine: what each worker does, how full its batches are, how long a step takes."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from grafana.frame import INSTANCE, Section, make
from grafana.panels import RATE, Panel, Query, graph, heat, listing, quantiles

WHERE = INSTANCE.where


def build() -> Dashboard:
    """The dashboard for whoever tunes or repairs workers."""
    return make(
        "workers",
        "Workers & engine",
        "What does each worker do, how full are its batches, and where does the time of a token go?",
        [INSTANCE],
        [
            Section("Workers", _workers()),
            Section("Batches", _batches()),
            Section("Time", _time()),
            Section("Memory", _memory()),
            Section("GPUs", _gpus()),
        ],
    )


def _workers() -> list[Panel]:
    return [
        listing(
            "Models",
            "What each worker serves. One model with two fingerprints gives two kinds of texts.",
            "short",
            f"farm_model_info{{{WHERE}}}",
            hidden=["Value", "job"],
            runbook="mixed-models",
        ),
        graph(
            "Ready",
            "1 while a worker takes jobs, 0 while it starts, drains or fails.",
            "short",
            Query(f"farm_worker_up{{{WHERE}}}", "{{instance}}"),
            steps=[(1, "green")],
            width=6,
            most=1.1,
            runbook="engine-restarts",
        ),
        graph(
            "Engine restarts",
            "In the last half hour. Three wake nobody, but want to be looked at.",
            "short",
            Query(f"increase(farm_engine_restarts_total{{{WHERE}}}[30m])", "{{instance}}"),
            steps=[(3, "red")],
            width=6,
            runbook="engine-restarts",
        ),
    ]


def _batches() -> list[Panel]:
    return [
        graph(
            "Slots in use",
            "Sequences in the engine; beside them the slots that there are.",
            "short",
            Query(f"farm_slots_in_use{{{WHERE}}}", "{{instance}}"),
            Query(f"farm_slots{{{WHERE}}}", "{{instance}} slots"),
        ),
        heat(
            "Batch size",
            "Rows of a decode step. A queue with small batches means that memory or prefill is short.",
            "short",
            "farm_batch_size",
            where=WHERE,
        ),
        graph(
            "Computed tokens",
            "Tokens a second by phase: prefill reads prompts, decode makes tokens.",
            "short",
            Query(f"sum by (phase) (rate(farm_engine_tokens_total{{{WHERE}}}[{RATE}]))", "{{phase}}"),
            Query(f"sum(rate(farm_cached_prompt_tokens_total{{{WHERE}}}[{RATE}]))", "not computed: prefix cache"),
        ),
    ]


def _time() -> list[Panel]:
    return [
        quantiles(
            "A step",
            "One pass of the engine. It bounds the time between two tokens.",
            "s",
            "farm_step_seconds",
            where=WHERE,
            steps=[(1, "orange")],
            width=6,
        ),
        quantiles(
            "Time per output token",
            "Per job, from its first token to its last.",
            "s",
            "farm_time_per_output_token_seconds",
            where=WHERE,
            steps=[(0.25, "orange")],
            width=6,
        ),
        quantiles(
            "Time to first token",
            "From submit until the first token is in the ledger, waiting included.",
            "s",
            "farm_ttft_seconds",
            where=WHERE,
            steps=[(10, "orange")],
            width=6,
        ),
        quantiles(
            "Time in the queue",
            "From submit until a worker first claims the job.",
            "s",
            "farm_queue_time_seconds",
            where=WHERE,
            steps=[(60, "orange")],
            width=6,
        ),
    ]


def _memory() -> list[Panel]:
    return [
        graph(
            "KV memory",
            "Share of the tokens of KV memory that running sequences hold. When full, jobs wait for room.",
            "percentunit",
            Query(f"farm_kv_tokens_in_use{{{WHERE}}} / (farm_kv_tokens_capacity{{{WHERE}}} > 0)", "{{instance}}"),
            steps=[(0.95, "orange")],
            most=1,
        ),
        graph(
            "Short of memory",
            "Sequences a second that gave their KV memory back, and steps that found no memory.",
            "cps",
            Query(f"sum(rate(farm_preemptions_total{{{WHERE}}}[{RATE}]))", "preempted"),
            Query(f"sum(rate(farm_engine_out_of_memory_total{{{WHERE}}}[{RATE}]))", "out of memory"),
            steps=[(1, "orange")],
            runbook="waste",
        ),
        graph(
            "Steps and loading",
            "Steps a second; how long the model took to load.",
            "short",
            Query(f"rate(farm_engine_steps_total{{{WHERE}}}[{RATE}])", "{{instance}} steps/s"),
            Query(f"farm_model_load_seconds{{{WHERE}}}", "{{instance}} load (s)"),
        ),
    ]


def _gpus() -> list[Panel]:
    return [
        graph(
            "GPU memory",
            "Share in use, by NVML. Empty on machines without a GPU.",
            "percentunit",
            Query(
                f"farm_gpu_memory_used_bytes{{{WHERE}}} / farm_gpu_memory_total_bytes{{{WHERE}}}",
                "{{instance}} {{gpu}}",
            ),
            steps=[(0.98, "orange")],
            width=12,
            most=1,
        ),
        graph(
            "GPU utilisation",
            "Share of the time in which a kernel ran, by NVML. Low with jobs waiting: the host is slow.",
            "percentunit",
            Query(f"farm_gpu_utilisation_ratio{{{WHERE}}}", "{{instance}} {{gpu}}"),
            width=12,
            most=1,
        ),
    ]
