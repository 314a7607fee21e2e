"""API & tenants: who asks for what, what it is answered, and who waits."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from grafana.frame import TENANT, Section, make
from grafana.panels import RATE, Panel, Query, graph, number

WHERE = TENANT.where


def build() -> Dashboard:
    """The dashboard for whoever looks after callers."""
    return make(
        "api",
        "API & tenants",
        "Who asks for what, what are they answered, and who waits?",
        [TENANT],
        [
            Section("The API", _api()),
            Section("What it answers", _answers()),
            Section("Tenants", _tenants()),
            Section("Batches and webhooks", _background()),
        ],
    )


def _api() -> list[Panel]:
    return [
        number(
            "Requests",
            "A second, of all API processes.",
            "reqps",
            f"sum(rate(farm_http_requests_total[{RATE}]))",
            width=4,
            none="no API",
        ),
        number(
            "Server errors",
            "Share of the requests of five minutes that were answered 5xx.",
            "percentunit",
            "farm:http_errors:ratio_rate5m",
            steps=[(0.01, "yellow"), (0.05, "red")],
            width=4,
            none="no requests",
            runbook="api-errors",
        ),
        number(
            "Open streams",
            "Server-sent event streams that are open now. FARM_API__MAX_STREAMS bounds them in each process.",
            "short",
            "sum(farm_http_streams_open)",
            width=4,
            none="no API",
        ),
        graph(
            "Requests by status",
            "A second. 4xx are callers' mistakes and limits, 5xx ours.",
            "reqps",
            Query(f"sum by (status) (rate(farm_http_requests_total[{RATE}]))", "{{status}}"),
            is_stacked=True,
            width=12,
            runbook="api-errors",
        ),
    ]


def _answers() -> list[Panel]:
    slowest = f"topk(8, histogram_quantile(0.95, sum by (le, route) (rate(farm_http_request_seconds_bucket[{RATE}]))))"
    return [
        graph(
            "Requests by route",
            "A second.",
            "reqps",
            Query(f"sum by (method, route) (rate(farm_http_requests_total[{RATE}]))", "{{method}} {{route}}"),
        ),
        graph(
            "p95 by route",
            "The eight slowest. Waits, long polls and streams are routes of their own; a stream counts until "
            "its first byte.",
            "s",
            Query(slowest, "{{route}}"),
            steps=[(1, "orange")],
            runbook="api-errors",
        ),
        graph(
            "Turned away",
            "Requests a second by reason: no key, rate, quota, queue full, memory, deadline, too large, streams.",
            "reqps",
            Query(f"sum by (reason) (rate(farm_http_rejected_total[{RATE}]))", "{{reason}}"),
            steps=[(1, "orange")],
            is_stacked=True,
            runbook="api-rejects",
        ),
    ]


def _tenants() -> list[Panel]:
    return [
        graph(
            "Who waits",
            "Waiting jobs of the ten tenants that have most. Tenants beyond the 50 largest are (other).",
            "short",
            Query(f"topk(10, farm:tenant_waiting_jobs{{{WHERE}}})", "{{tenant}}"),
            steps=[(100_000, "orange")],
            width=12,
            runbook="queue-too-old",
        ),
        graph(
            "Who is served",
            "Tokens of this UTC day, prompt and completion, of jobs that ended: the ten largest tenants.",
            "short",
            Query(f"topk(10, max by (tenant) (farm_tenant_tokens_today{{{WHERE}}}))", "{{tenant}}"),
            width=12,
        ),
    ]


def _background() -> list[Panel]:
    return [
        graph(
            "Batches",
            "Those that have not ended by status, and how many ended an hour.",
            "short",
            Query("farm:batches", "{{status}}"),
            Query("sum(max by (status) (increase(farm_batches_ended_total[1h])))", "ended, last hour"),
        ),
        graph(
            "Webhooks that wait",
            "To be called, or to be called again.",
            "short",
            Query("farm:webhooks_waiting", "waiting"),
            steps=[(100, "orange")],
            runbook="webhooks",
        ),
        graph(
            "Webhook calls",
            "A second by outcome: ok, failed (called again), gone (the receiver said 410), refused (not called).",
            "cps",
            Query(f"sum by (outcome) (rate(farm_webhook_deliveries_total[{RATE}]))", "{{outcome}}"),
            is_stacked=True,
            runbook="webhooks",
        ),
    ]
