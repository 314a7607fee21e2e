"""``farm dead``: jobs that were given up because they took too many workers or engines down."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.text import Text

from farm.cli.exits import FAILED
from farm.cli.help import Command, Group, commands, examples
from farm.cli.job_page import show_job
from farm.cli.options import Json, reachable_settings
from farm.cli.output import duration, emit, note, stdout
from farm.contracts import JobState
from farm.errors import InvalidRequest
from farm.ledger.dead import Answer, Deed, dead_count, dead_ids, purge, refusal, retry
from farm.ledger.jobs import Jobs
from farm.results import JobView

PAGE = 100
_AGE = re.compile(r"^(\d+(?:\.\d+)?)([smhd])$")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

app = commands()
group = typer.Typer(
    name="dead",
    cls=Group,
    no_args_is_help=True,
    epilog=examples(
        "farm dead list",
        "farm dead show 0192f0c1-…",
        "farm dead retry 0192f0c1-…",
        "farm dead list --json | jq -r .id | xargs farm dead retry",
        "farm dead purge --all --older-than 7d",
    ),
)
app.add_typer(group)

OneModel = Annotated[str | None, typer.Option("--model", metavar="NAME", help="Only those of this model.")]
OneTenant = Annotated[str | None, typer.Option("--tenant", metavar="NAME", help="Only those of this tenant.")]
SomeJobs = Annotated[list[str] | None, typer.Argument(metavar="JOB", help="Ids of dead jobs.", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="All dead jobs, or those that the options name.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask whether all are meant.")]


@group.callback()
def dead() -> None:
    """Look at dead jobs, queue them again or delete them.

    A job is dead after its worker or engine was lost with it three times before it gave a token, or ten times in a row
    with few between. It is kept like every finished job, and then deleted.
    """


@group.command("list", cls=Command, epilog=examples("farm dead list", "farm dead list --tenant acme --limit 5"))
def list_jobs(
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="How many to list.")] = 20,
    model: OneModel = None,
    tenant: OneTenant = None,
    as_json: Json = False,
) -> None:
    """List dead jobs, the latest first.

    With --json, one object a line, without prompts and texts.
    """
    with _ledger() as jobs:
        ids = dead_ids(jobs, limit=limit, model=model, tenant=tenant)
        views = [view for view in jobs.views(ids) if view is not None and view.state is JobState.DEAD]
        total = dead_count(jobs)
    if as_json:
        for view in views:
            emit(_summary(view))
    elif views:
        _print_list(views, total)
    else:
        which = "".join(f" of {kind} {name}" for kind, name in (("model", model), ("tenant", tenant)) if name)
        stdout().print(f"No dead jobs{which}: nothing had to be given up.", highlight=False)


@group.command(cls=Command, epilog=examples("farm dead show 0192f0c1-…"))
def show(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A dead job's id.")],
    as_json: Json = False,
) -> None:
    """Show a dead job with every attempt.

    Fails if the job is not dead; farm status shows any job.
    """
    with _ledger() as jobs:
        view = jobs.view(job)
        if view.state is not JobState.DEAD:
            raise refusal(jobs, Answer(job, False, view.state), "show")
    emit(view.to_dict()) if as_json else show_job(view)


@group.command(
    "retry",
    cls=Command,
    epilog=examples(
        "farm dead retry 0192f0c1-…", "farm dead retry --all --model bloom-7b1", "farm dead retry --all -y"
    ),
)
def retry_jobs(
    job_ids: SomeJobs = None,
    every: All = False,
    model: OneModel = None,
    tenant: OneTenant = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Drop the tokens they have and start over.")] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Queue dead jobs again, each once.

    They start with no strikes and go on from the tokens they have; a deadline starts anew. Until one gives a token it
    runs beside no other suspect. Fails if one is unknown or not dead.
    """
    with _ledger() as jobs:
        wanted = _wanted(jobs, job_ids, every, "Queue again", yes, model=model, tenant=tenant)
        _report(jobs, (retry(jobs, page, fresh=fresh) for page in _pages(wanted)), "retry", every, as_json)


@group.command(
    "purge",
    cls=Command,
    epilog=examples("farm dead purge 0192f0c1-…", "farm dead purge --all --older-than 7d"),
)
def purge_jobs(
    job_ids: SomeJobs = None,
    every: All = False,
    older_than: Annotated[
        str,
        typer.Option(
            metavar="AGE", help="With --all: only those dead for so long, as 90s, 15m, 12h or 7d.", show_default=False
        ),
    ] = "",
    model: OneModel = None,
    tenant: OneTenant = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete dead jobs now, with all that is known of them.

    Fails if one is unknown or not dead.
    """
    if older_than and not every:
        raise InvalidRequest("--older-than", "narrows --all; leave it out, or the ids")
    older_s = _seconds(older_than) if older_than else 0.0
    with _ledger() as jobs:
        wanted = _wanted(jobs, job_ids, every, "Delete", yes, model=model, tenant=tenant, older_s=older_s)
        _report(jobs, (purge(jobs, page, older_s=older_s) for page in _pages(wanted)), "purge", every, as_json)


@contextmanager
def _ledger() -> Iterator[Jobs]:
    jobs = Jobs(reachable_settings())
    try:
        yield jobs
    finally:
        jobs.client.close()


def _wanted(jobs: Jobs, job_ids: list[str] | None, every: bool, question: str, yes: bool, **which: Any) -> list[str]:
    """The ids that are meant, once a person at a terminal has confirmed that all are."""
    if bool(job_ids) == every:
        both = "name jobs or give --all, not both"
        raise InvalidRequest("JOB", both if every else "name some jobs (farm dead list shows them), or give --all")
    if job_ids:
        if which["model"] or which["tenant"]:
            raise InvalidRequest("--model and --tenant", "narrow --all; leave them out, or the ids")
        return job_ids
    found = dead_ids(jobs, **which)
    if found and not yes and sys.stdin.isatty():
        typer.confirm(f"{_count(len(found))}. {question}?", abort=True, err=True)
    return found


def _report(jobs: Jobs, pages: Iterable[list[Answer]], deed: Deed, every: bool, as_json: bool) -> None:
    """Tell what became of each job as it is known; all that went well in one line if all were meant."""
    word = "deleted" if deed == "purge" else "queued again"
    done = failed = 0
    for answer in (answer for page in pages for answer in page):
        done, failed = done + answer.is_done, failed + (not answer.is_done)
        error = None if answer.is_done else refusal(jobs, answer, deed)
        if as_json:
            state = None if answer.state is None else answer.state.value
            emit({"id": answer.id, "done": answer.is_done, "state": state, "error": error and str(error)})
        elif error is not None:
            note(str(error))
        elif not every:
            sys.stdout.write(f"{answer.id} {word}\n")
    if every and not as_json:
        sys.stdout.write(f"{_count(done)} {word}\n" if done or failed else "No dead jobs.\n")
    if failed:
        raise typer.Exit(FAILED)


def _print_list(views: list[JobView], total: int) -> None:
    """Two lines a job: what it is, and why it died. Ids are whole, to be copied."""
    out = stdout()
    widths = [max(len(name) for name in names) for names in zip(*((v.model, v.tenant) for v in views), strict=True)]
    for view in views:
        ago = duration(max(0.0, time.time() - (view.finished_at or 0.0)))
        names = "  ".join(name.ljust(width) for name, width in zip((view.model, view.tenant), widths, strict=True))
        out.print(Text.assemble((view.id, "bold"), f"  {names}  {ago} ago"), soft_wrap=True)
        counts = f"attempts {view.attempt}, strikes {view.strikes}, losses {view.losses}"
        tokens = f"tokens {view.usage.completion_tokens:,}"
        out.print(Text(f"    {counts}, {tokens}: {_last_reason(view)}", style="dim"))
    out.print()
    out.print(f"{_count(total)}{f', the latest {len(views)} shown' if len(views) < total else ''}", highlight=False)
    out.print("farm dead show JOB tells more; farm dead retry JOB queues one again", style="dim", highlight=False)


def _summary(view: JobView) -> dict[str, Any]:
    error = view.error
    return {
        "id": view.id,
        "model": view.model,
        "tenant": view.tenant,
        "priority": view.priority,
        "created_at": view.created_at,
        "died_at": view.finished_at,
        "attempt": view.attempt,
        "strikes": view.strikes,
        "losses": view.losses,
        "tokens": view.usage.completion_tokens,
        "reason": _last_reason(view),
        "error": None if error is None else {"code": error.code, "message": error.message},
    }


def _last_reason(view: JobView) -> str:
    return view.history[-1].reason.replace("_", " ") if view.history else "unknown"


def _count(number: int) -> str:
    return f"{number:,} dead {'job' if number == 1 else 'jobs'}"


def _pages(job_ids: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(job_ids), PAGE):
        yield job_ids[start : start + PAGE]


def _seconds(age: str) -> float:
    """Seconds in an age such as 12h. Raises InvalidRequest."""
    found = _AGE.match(age)
    if found is None:
        raise InvalidRequest("--older-than", f"{age!r} is no age; give a number with its unit, as 90s, 15m, 12h or 7d")
    return float(found[1]) * _UNITS[found[2]]
