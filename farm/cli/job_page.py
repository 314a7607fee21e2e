"""One job on a page: how it stands, every attempt, its text."""

from __future__ import annotations

import time

from rich.table import Table
from rich.text import Text

from farm.cli.output import clock, duration, printable, stdout, table
from farm.contracts import JobState
from farm.results import JobView, WebhookView

STYLES = {
    JobState.SUCCEEDED: "green",
    JobState.RUNNING: "cyan",
    JobState.FAILED: "red",
    JobState.DEAD: "red",
    JobState.EXPIRED: "yellow",
    JobState.CANCELLED: "yellow",
}


def show_job(view: JobView) -> None:
    """Print all about one job, fit for 80 columns."""
    out = stdout()
    word = "queued" if view.state is JobState.DISPATCHED else view.state.value
    out.print(Text.assemble((view.id, "bold"), "  ", (word, STYLES.get(view.state, "bold"))))
    facts = table("", "")
    facts.show_header = False
    for name, value in _facts(view):
        facts.add_row(Text(name, style="dim"), Text(value))
    out.print(facts)
    if view.history or view.state is JobState.RUNNING:
        out.print()
        out.print(_history(view))
    if view.text:
        out.print()
        out.print(printable(view.text), markup=False, soft_wrap=True)


def _facts(view: JobView) -> list[tuple[str, str]]:
    usage, took = view.usage, view.timings
    facts = [
        ("model", view.model),
        ("asked by", f"{view.tenant}, priority {view.priority}"),
        ("submitted", f"{clock(view.created_at)}, {duration(time.time() - view.created_at)} ago"),
    ]
    if view.position:
        eta = f", about {duration(view.eta_s)} to go" if view.eta_s is not None else ""
        facts.append(("place", f"{view.position:,} in line{eta}"))
    if view.started_at is not None:
        facts.append(("started", f"{clock(view.started_at)}, after {duration(took.queued_s)} in line"))
    if took.ttft_s is not None:
        facts.append(("first token", f"after {duration(took.ttft_s)}"))
    if view.finished_at is not None:
        reason = f" ({view.finish_reason})" if view.finish_reason else ""
        facts.append(("ended", f"{clock(view.finished_at)}, after {duration(took.total_s)}{reason}"))
    resumed = f", {usage.resumed_tokens:,} of them resumed" if usage.resumed_tokens else ""
    facts.append(("tokens", f"{usage.prompt_tokens:,} prompt + {usage.completion_tokens:,} generated{resumed}"))
    if view.worker:
        facts.append(("worker", f"{view.worker}, attempt {view.attempt}"))
    if view.strikes:
        facts.append(("strikes", f"{view.strikes}: lost so often with its worker or engine, without a new token"))
    if view.losses > view.strikes:
        facts.append(("losses", f"{view.losses}: lost so often in a row with few new tokens"))
    if view.error:
        facts.append(("error", f"{view.error.code}: {view.error.message}"))
    if view.webhook:
        facts.append(("webhook", _webhook(view.webhook)))
    if view.metadata:
        facts.append(("metadata", ", ".join(f"{name}={value}" for name, value in view.metadata.items())))
    return facts


def _webhook(webhook: WebhookView) -> str:
    """What came of it; not the URL, which may hold a secret."""
    if not webhook.calls:
        return webhook.state
    last = webhook.calls[-1]
    calls = f"{webhook.tries:,} {'call' if webhook.tries == 1 else 'calls'}"
    return f"{webhook.state}, {calls}, the last: {last.status or last.error}"


def _history(view: JobView) -> Table:
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    shown.add_column("attempt", justify="right", no_wrap=True)
    shown.add_column("worker", overflow="fold")
    for name in ("from", "for", "tokens", "ended by"):
        shown.add_column(name, justify="right" if name == "tokens" else "left", no_wrap=True)
    for past in view.history:
        reason = past.reason.replace("_", " ")
        if past.worker:
            took = duration(past.ended_at - past.started_at)
            shown.add_row(
                str(past.attempt), past.worker, _moment(past.started_at, view), took, f"{past.tokens:,}", reason
            )
        else:  # no attempt, but what a person did between two
            shown.add_row("", "", _moment(past.started_at, view), "", "", Text(reason, style="bold"))
    if view.state is JobState.RUNNING and view.claimed_at is not None:
        new_tokens = view.usage.completion_tokens - view.usage.resumed_tokens
        so_far = duration(max(0.0, time.time() - view.claimed_at))
        running = Text("running", style=STYLES[JobState.RUNNING])
        moment = _moment(view.claimed_at, view)
        shown.add_row(str(view.attempt), view.worker, moment, so_far, f"{new_tokens:,}", running)
    return shown


def _moment(unix_s: float, view: JobView) -> str:
    """The time of day; with the date if it is another day than that of the submission, which is told above."""
    there, submitted = time.localtime(unix_s), time.localtime(view.created_at)
    return time.strftime("%H:%M:%S" if there[:3] == submitted[:3] else "%m-%d %H:%M:%S", there)
