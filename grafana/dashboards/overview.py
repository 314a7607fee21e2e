"""Overview: is the farm healthy, how far behind is it, when will it be empty."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from grafana.frame import MODEL, Section, make
from grafana.panels import Panel, Query, graph, listing, number, quantiles

WHERE = MODEL.where
UNANSWERED = 'state=~"dead|failed|expired"'
KEPT = 'state!="cancelled"'


def build() -> Dashboard:
    """The dashboard to open first."""
    return make(
        "overview",
        "Overview",
        "Is the farm healthy, how far behind is it, and when will it be empty?",
        [MODEL],
        [
            Section("Now", _now()),
            Section("How far behind", _behind()),
            Section("What comes and goes", _flow()),
            Section("What was promised", _promises()),
            Section("What is wrong", _wrong()),
        ],
    )


def _now() -> list[Panel]:
    answered = (
        f"1 - sum(max by (model, state) (increase(farm_jobs_total{{{WHERE}, {UNANSWERED}}}[$__range])))"
        f" / (sum(max by (model, state) (increase(farm_jobs_total{{{WHERE}, {KEPT}}}[$__range]))) > 0)"
    )
    return [
        number(
            "Server",
            "Whether the ledger's server answers at least one part of the farm.",
            "short",
            "farm:server_up",
            steps=[(1, "green")],
            base="red",
            names={"0": "down", "1": "up"},
            runbook="server-down",
        ),
        number(
            "Alerts",
            "Alerts of the farm that fire now; the list is at the bottom.",
            "short",
            'count(ALERTS{alertname=~"Farm.+", alertstate="firing"}) or vector(0)',
            steps=[(1, "orange"), (3, "red")],
            runbook="index",
        ),
        number(
            "Slots",
            "Sequences that live workers can generate at once; draining workers do not count.",
            "short",
            f"sum(farm:slots_capacity{{{WHERE}}})",
            steps=[(1, "green")],
            base="red",
            runbook="no-worker",
        ),
        number(
            "Busy",
            "Share of the slots that run a job. At 100% with jobs waiting, more workers would help.",
            "percentunit",
            f'sum(farm:jobs_in_state{{{WHERE}, state="running"}}) / (sum(farm:slots_capacity{{{WHERE}}}) > 0)',
            none="no slots",
        ),
        number(
            "Waiting",
            "Jobs that were accepted and do not run: queued, delayed for a retry, or dispatched.",
            "short",
            f"sum(farm:queue_depth{{{WHERE}}})",
            steps=[(1_000, "yellow"), (100_000, "orange")],
            runbook="queue-too-old",
        ),
        number(
            "Oldest",
            "How long the oldest waiting job has waited, whatever its priority.",
            "s",
            f"max(farm:queue_oldest_age_seconds{{{WHERE}}})",
            steps=[(60, "yellow"), (600, "red")],
            runbook="queue-too-old",
        ),
        number(
            "Empty in",
            "When the queue will be empty at the pace that was measured, if nothing comes.",
            "s",
            f"max(farm:queue_eta_seconds{{{WHERE}}})",
            steps=[(600, "yellow"), (3_600, "orange")],
            none="unknown",
        ),
        number(
            "Answered",
            "Share of the jobs ending in the chosen time that were answered. Cancelled ones do not count.",
            "percentunit",
            answered,
            steps=[(0.99, "orange"), (0.999, "green")],
            base="red",
            none="no ends",
            runbook="answers-burn",
            decimals=3,
        ),
    ]


def _behind() -> list[Panel]:
    return [
        graph(
            "Jobs that wait",
            "By priority; high goes first. They include delayed and dispatched ones.",
            "short",
            Query(f"sum by (priority) (farm:queue_depth{{{WHERE}}})", "{{priority}}"),
            steps=[(100_000, "orange")],
            is_stacked=True,
            runbook="queue-too-old",
        ),
        graph(
            "Age of the oldest job",
            "Since it was submitted. A line that climbs at 45° means that none of them starts.",
            "s",
            Query(f"max by (priority) (farm:queue_oldest_age_seconds{{{WHERE}}})", "{{priority}}"),
            steps=[(60, "yellow"), (600, "red")],
            runbook="queue-too-old",
        ),
        graph(
            "Time to empty",
            "By model, at the measured pace. Absent while there is no pace to go by.",
            "s",
            Query(f"farm:queue_eta_seconds{{{WHERE}}}", "{{model}}"),
            steps=[(3_600, "orange")],
        ),
    ]


def _flow() -> list[Panel]:
    submitted = f"sum(max by (model) (rate(farm_jobs_submitted_total{{{WHERE}}}[$__rate_interval])))"
    ended = f"sum by (state) (max by (model, state) (rate(farm_jobs_total{{{WHERE}}}[$__rate_interval])))"
    return [
        graph(
            "Submitted and ended",
            "Jobs a second. While more come than end, the queue grows.",
            "reqps",
            Query(submitted, "submitted"),
            Query(f"sum({ended})", "ended"),
        ),
        graph(
            "How jobs end",
            "Jobs a second by outcome. Dead, failed and expired ones were not answered.",
            "reqps",
            Query(ended, "{{state}}"),
            is_stacked=True,
            runbook="answers-burn",
        ),
        graph(
            "Tokens",
            "Tokens a second of all workers: prompts that were computed first, and tokens the ledger accepted.",
            "short",
            Query('sum by (kind) (rate(farm_tokens_total{kind=~"prompt|generated"}[$__rate_interval]))', "{{kind}}"),
            is_stacked=True,
        ),
    ]


def _promises() -> list[Panel]:
    return [
        quantiles(
            "From submit to end",
            "Of jobs that a worker ended, waiting included. The promise is 95% within 60 s.",
            "s",
            "farm_e2e_seconds",
            where="",
            steps=[(60, "red")],
        ),
        graph(
            "Budget burn: answers",
            "How fast the 0.1% of unanswered jobs is spent, last hour. 1 lasts exactly 30 days; "
            "at 14.4 somebody is woken.",
            "short",
            Query(f"farm:unanswered:ratio_rate1h{{{WHERE}}} / 0.001", "{{model}}"),
            steps=[(1, "yellow"), (14.4, "red")],
            runbook="answers-burn",
        ),
        graph(
            "Budget burn: latency",
            "How fast the 5% of jobs that may take over 60 s is spent, last hour. 1 lasts exactly "
            "30 days; at 14.4 somebody is woken.",
            "short",
            Query("farm:slow:ratio_rate1h / 0.05", "burn"),
            steps=[(1, "yellow"), (14.4, "red")],
            runbook="latency-burn",
        ),
    ]


def _wrong() -> list[Panel]:
    return [
        listing(
            "Firing and pending alerts",
            "Each has a runbook of its own: docs/runbooks.",
            "short",
            'ALERTS{alertname=~"Farm.+"}',
            hidden=["Value", "job", "instance"],
            runbook="index",
        ),
        graph(
            "Workers",
            "By role and state. Silent ones were not heard of in time; ones in trouble take no jobs.",
            "short",
            Query("sum by (role, state) (farm:workers)", "{{role}} {{state}}"),
            width=6,
            runbook="engine-restarts",
        ),
        graph(
            "Server memory",
            "Share of maxmemory. New jobs are refused above 80%.",
            "percentunit",
            Query("farm:redis_memory:ratio", "used"),
            steps=[(0.65, "yellow"), (0.8, "red")],
            width=6,
            most=1,
            runbook="server-memory",
        ),
    ]
