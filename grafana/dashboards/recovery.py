"""Recovery & waste: what dies, what is done twice, what it costs."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from grafana.frame import MODEL, Section, make
from grafana.panels import RATE, Panel, Query, graph, number

WHERE = MODEL.where
WASTED = 'kind=~"resumed|recomputed|cancelled|lost"'


def build() -> Dashboard:
    """The dashboard for after something died."""
    return make(
        "recovery",
        "Recovery & waste",
        "What died, what came back, what was computed for nothing?",
        [MODEL],
        [
            Section("Cost", _cost()),
            Section("Jobs that were put back", _put_back()),
            Section("Jobs that were given up", _given_up()),
            Section("The server's safety", _server()),
        ],
    )


def _cost() -> list[Panel]:
    return [
        number(
            "Waste",
            "Share of the computed tokens of the last half hour that were for nothing or came twice.",
            "percentunit",
            "farm:waste:ratio_rate30m",
            steps=[(0.05, "yellow"), (0.2, "red")],
            width=4,
            none="no tokens",
            runbook="waste",
        ),
        number(
            "Dead jobs",
            "Dead jobs that are kept: somebody must retry or purge them.",
            "short",
            "farm:dead_jobs",
            steps=[(1, "orange")],
            width=4,
            runbook="jobs-dead",
        ),
        graph(
            "Where tokens go",
            "Tokens a second: prompt and generated are useful. Resumed: computed again after a release. "
            "Recomputed: after a shortage of memory. Cancelled: for jobs that ended otherwise. Lost: refused or died "
            "with an engine.",
            "short",
            Query(f"sum by (kind) (rate(farm_tokens_total[{RATE}]))", "{{kind}}"),
            is_stacked=True,
            runbook="waste",
        ),
        graph(
            "Waste by kind",
            "Share of all computed tokens.",
            "percentunit",
            Query(
                f"sum by (kind) (rate(farm_tokens_total{{{WASTED}}}[{RATE}])) / on () group_left () "
                f"(sum(rate(farm_tokens_total[{RATE}])) > 0)",
                "{{kind}}",
            ),
            steps=[(0.2, "red")],
            is_stacked=True,
            runbook="waste",
        ),
    ]


def _put_back() -> list[Panel]:
    return [
        graph(
            "By reason",
            "Jobs a second that went back to the queue. Drains are somebody's wish.",
            "reqps",
            Query(f"max by (reason) (rate(farm_releases_total[{RATE}]))", "{{reason}}"),
            is_stacked=True,
            width=6,
            runbook="leases-lost",
        ),
        graph(
            "Leases lost, retries",
            "Jobs a second. A lease ends when its worker died, froze or was cut off.",
            "reqps",
            Query(f"max(rate(farm_leases_lost_total[{RATE}]))", "leases lost"),
            Query(f"max(rate(farm_retries_total[{RATE}]))", "retries"),
            steps=[(1, "orange")],
            width=6,
            runbook="leases-lost",
        ),
        graph(
            "Messages",
            "Messages a second that nobody claimed in time and went out again, or that came twice or late.",
            "reqps",
            Query(f"max(rate(farm_messages_republished_total[{RATE}]))", "republished"),
            Query(f"max by (reason) (rate(farm_deliveries_dropped_total[{RATE}]))", "dropped: {{reason}}"),
            steps=[(0.2, "orange")],
            width=6,
            runbook="messages-unclaimed",
        ),
        graph(
            "Engines that died",
            "Restarts of engines a second, by worker.",
            "cps",
            Query(f"rate(farm_engine_restarts_total[{RATE}])", "{{instance}}"),
            steps=[(0.1, "orange")],
            width=6,
            runbook="engine-restarts",
        ),
    ]


def _given_up() -> list[Panel]:
    unanswered = f'increase(farm_jobs_total{{{WHERE}, state=~"dead|failed|expired"}}[$__rate_interval])'
    ended = f"sum by (state) (max by (model, state) ({unanswered}))"
    return [
        graph(
            "Unanswered jobs",
            "Jobs that ended dead, failed or expired.",
            "short",
            Query(ended, "{{state}}"),
            steps=[(1, "orange")],
            is_stacked=True,
            runbook="answers-burn",
        ),
        graph(
            "Dead jobs that are kept",
            "They come back with farm dead retry and leave with farm dead purge.",
            "short",
            Query("farm:dead_jobs", "dead"),
            steps=[(1, "orange")],
            runbook="jobs-dead",
        ),
        graph(
            "Tokens of ended jobs",
            "A second. Resumed ones were in the ledger when another worker took the job on: they "
            "were not generated again.",
            "short",
            Query(f"max by (kind) (rate(farm_ledger_tokens_total[{RATE}]))", "{{kind}}"),
        ),
    ]


def _server() -> list[Panel]:
    return [
        number(
            "Append-only file",
            "Whether the server writes what it accepts to disk.",
            "short",
            "min(redis_aof_enabled)",
            steps=[(1, "green")],
            base="red",
            names={"0": "off", "1": "on"},
            width=4,
            none="no exporter",
            runbook="append-only-file",
        ),
        number(
            "Last write",
            "Whether the server's last write to its append-only file succeeded.",
            "short",
            "min(redis_aof_last_write_status)",
            steps=[(1, "green")],
            base="red",
            names={"0": "failed", "1": "ok"},
            width=4,
            none="no exporter",
            runbook="append-only-file",
        ),
        number(
            "Evicted keys",
            "Keys that the server threw away since its start. Any may have been a job.",
            "short",
            "max(redis_evicted_keys_total)",
            steps=[(1, "red")],
            width=4,
            none="no exporter",
            runbook="server-evicts",
        ),
        graph(
            "Commands",
            "What the server does a second, the farm's calls and Celery's.",
            "ops",
            Query(f"sum(rate(redis_commands_processed_total[{RATE}]))", "commands"),
            width=6,
        ),
        graph(
            "Memory",
            "What the server holds. The line is its limit, if it has one.",
            "bytes",
            Query("max(farm_redis_memory_bytes)", "used"),
            Query("max(farm_redis_memory_limit_bytes) > 0", "limit"),
            width=6,
            runbook="server-memory",
        ),
    ]
