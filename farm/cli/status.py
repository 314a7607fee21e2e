"""``farm status``: the farm at a glance, or everything about one job."""

from __future__ import annotations

from typing import Annotated

import typer

from farm.cli.farm_words import ended, put_back, worker_state
from farm.cli.help import Command, commands, examples
from farm.cli.job_page import show_job
from farm.cli.options import Json, reachable_settings
from farm.cli.output import duration, emit, stdout, table
from farm.contracts import PRIORITIES
from farm.ledger.jobs import Jobs
from farm.ledger.overview import ModelLoad, Overview, overview
from farm.local.discover import running_farm
from farm.settings import Settings

app = commands()


@app.command(cls=Command, epilog=examples("farm status", "farm status 0192f0c1-…", "farm status --json | jq .models"))
def status(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="A job's id; the whole farm without it.")] = None,
    as_json: Json = False,
) -> None:
    """Show how the farm stands, or one job.

    The farm: jobs by model and priority, workers, totals. Those that wait are queued by priority, delayed (until a
    retry) or sent (their messages are out). A job: state, place in line, times, text and every attempt.
    """
    jobs = Jobs(reachable_settings())
    try:
        if job is not None:
            view = jobs.view(job, with_position=True)
            emit(view.to_dict()) if as_json else show_job(view)
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
    out.print(f"[bold]submitted[/bold] {seen.totals.get('submitted', 0):,}")
    out.print(f"[bold]ended[/bold]     {ended(seen.totals)}")
    if revived := seen.totals.get("revived"):
        out.print(f"[bold]retried[/bold]   {revived:,} dead, by hand")
    out.print(f"[bold]put back[/bold]  {put_back(seen.released)}")


def _loads(models: list[ModelLoad]) -> object:
    numbers = ("waiting", *PRIORITIES, "delayed", "sent", "running", "slots", "jobs/s")
    shown = table("model", *numbers, right=numbers)
    for load in models:
        levels = [load.queued[priority] for priority in PRIORITIES]
        cells = [load.waiting, *levels, load.delayed, load.dispatched, load.running, load.slots]
        shown.add_row(load.model, *(f"{cell:,}" for cell in cells), f"{load.per_s:.1f}")
    return shown


def _workers(seen: Overview) -> object:
    shown = table("worker", "model", "state", "running", "slots", "up", right=("running", "slots"))
    for worker in seen.workers:
        is_model = worker.role == "model"
        shown.add_row(
            worker.name,
            worker.model if is_model else worker.role,
            worker_state(worker),
            str(worker.held) if is_model else "-",
            str(worker.slots) if is_model else "-",
            duration(worker.up_s),
        )
    return shown
