"""``farm status``: the farm at a glance, or everything about one job."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.text import Text

from farm.cli.help import Command, commands, examples
from farm.cli.options import Json, reachable_settings
from farm.cli.output import clock, duration, emit, printable, stdout, table
from farm.contracts import PRIORITIES, JobState
from farm.ledger.jobs import Jobs
from farm.ledger.overview import ModelLoad, Overview, overview
from farm.local.discover import running_farm
from farm.results import JobView
from farm.settings import Settings

STYLES = {
    JobState.SUCCEEDED: "green",
    JobState.RUNNING: "cyan",
    JobState.FAILED: "red",
    JobState.DEAD: "red",
    JobState.EXPIRED: "yellow",
    JobState.CANCELLED: "yellow",
}
ENDS = ("succeeded", "failed", "cancelled", "expired", "dead")
app = commands()


@app.command(cls=Command, epilog=examples("farm status", "farm status 0192f0c1-…", "farm status --json | jq .models"))
def status(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="A job's id; the whole farm without it.")] = None,
    as_json: Json = False,
) -> None:
    """Show how the farm stands, or one job.

    The farm: jobs by model and priority, workers, totals. Queued jobs may be delayed (until a retry) or sent (their
    messages are out). A job: state, place in line, times, text and every attempt.
    """
    jobs = Jobs(reachable_settings())
    try:
        if job is not None:
            view = jobs.view(job, with_position=True)
            emit(view.to_dict()) if as_json else _show_job(view)
        else:
            seen = overview(jobs)
            api_url = _api_url(jobs.settings)
            if as_json:
                emit({"server": jobs.where, "api_url": api_url, **seen.to_dict()})
            else:
                _show_farm(seen, jobs.where, api_url)
    finally:
        jobs.client.close()


def _api_url(settings: Settings) -> str | None:
    """Where the local farm's API is, if this is the local farm."""
    local, url = running_farm(settings), settings.redis.url
    if local is None or url is None or local["redis_url"] != url.get_secret_value():
        return None
    return local.get("api_url")


def _show_farm(seen: Overview, where: str, api_url: str | None) -> None:
    out = stdout()
    out.print(f"[bold]Farm[/bold] at {where}" + (f", API {api_url}" if api_url else ""))
    out.print()
    out.print(_loads(seen.models))
    out.print()
    out.print(_workers(seen) if seen.workers else "No workers. Start one: farm worker")
    out.print()
    ended = ", ".join(f"{seen.totals[name]:,} {name}" for name in ENDS if seen.totals.get(name))
    submitted = seen.totals.get("submitted", 0)
    out.print(f"{submitted:,} jobs submitted so far" + (f": {ended}" if ended else ""))
    losses = ", ".join(
        f"{count:,} {name.removeprefix('released:')}"
        for name, count in sorted(seen.totals.items())
        if name.startswith("released:")
    )
    if losses:
        out.print(f"handed back and queued again: {losses}")


def _loads(models: list[ModelLoad]) -> object:
    numbers = ("queued", *PRIORITIES, "delayed", "sent", "running", "slots", "jobs/s")
    shown = table("model", *numbers, right=numbers)
    for load in models:
        queued = sum(load.queued.values()) + load.delayed + load.dispatched
        levels = [load.queued[priority] for priority in PRIORITIES]
        cells = [queued, *levels, load.delayed, load.dispatched, load.running, load.slots]
        shown.add_row(load.model, *(f"{cell:,}" for cell in cells), f"{load.per_s:.1f}")
    return shown


def _workers(seen: Overview) -> object:
    shown = table("worker", "model", "state", "running", "slots", "up", right=("running", "slots"))
    for worker in seen.workers:
        if not worker.is_alive:
            state = Text(f"silent for {duration(worker.silent_s)}", style="red")
        elif worker.is_draining:
            state = Text("draining", style="yellow")
        elif worker.trouble:
            state = Text(worker.trouble, style="red" if "failing" in worker.trouble else "yellow")
        else:
            state = Text("alive", style="green")
        is_model = worker.role == "model"
        shown.add_row(
            worker.name,
            worker.model if is_model else worker.role,
            state,
            str(worker.held) if is_model else "-",
            str(worker.slots) if is_model else "-",
            duration(worker.up_s),
        )
    return shown


def _show_job(view: JobView) -> None:
    out = stdout()
    word = "queued" if view.state is JobState.DISPATCHED else view.state.value
    out.print(Text.assemble((view.id, "bold"), "  ", (word, STYLES.get(view.state, "bold"))))
    facts = table("", "")
    facts.show_header = False
    for name, value in _facts(view):
        facts.add_row(Text(name, style="dim"), Text(value))
    out.print(facts)
    if view.history:
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
    if view.error:
        facts.append(("error", f"{view.error.code}: {view.error.message}"))
    if view.metadata:
        facts.append(("metadata", ", ".join(f"{name}={value}" for name, value in view.metadata.items())))
    return facts


def _history(view: JobView) -> object:
    shown = table("attempt", "worker", "from", "for", "tokens", "ended by", right=("attempt", "tokens"))
    for past in view.history:
        shown.add_row(
            str(past.attempt),
            past.worker,
            clock(past.started_at),
            duration(past.ended_at - past.started_at),
            f"{past.tokens:,}",
            past.reason.replace("_", " "),
        )
    return shown
