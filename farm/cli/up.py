"""``farm up``: a farm on this machine, in the foreground, until somebody stops it."""

from __future__ import annotations

import os
import shlex
import time
from typing import Annotated

import typer

from farm import __version__, rest
from farm.cli.exits import INTERRUPTED
from farm.cli.foreground import emit_event, run_stack, say_event, wait_ready
from farm.cli.help import Command, commands, examples
from farm.cli.options import Json, StateDir
from farm.cli.output import duration, emit, note, stdout, table
from farm.connection import address
from farm.flower import check_exposure
from farm.local.stack import Stack
from farm.settings import LocalSettings, load_settings

DEFAULT_FOLDER = LocalSettings().state_dir
app = commands()


@app.command(
    cls=Command,
    epilog=examples(
        "farm up",
        "farm up --workers 2 --state-dir ./state",
        "FARM_MODEL__ID=bigscience/bloom-7b1 farm up",
        "FARM_REDIS__URL=redis://host:6379/0 farm up     the rest on a server that runs already",
    ),
)
def up(
    workers: Annotated[
        int, typer.Option(min=0, metavar="N", help="How many workers generate; they share the cores.")
    ] = 1,
    state_dir: StateDir = DEFAULT_FOLDER,
    api: Annotated[bool, typer.Option(help="Answer HTTP requests.")] = True,
    flower: Annotated[bool, typer.Option(help="Show workers and tasks on a web page.")] = True,
    as_json: Json = False,
) -> None:
    """Run a farm on this machine until Ctrl-C.

    Starts a Redis server that keeps what it accepts on disk, workers, the REST API and Flower, and starts again what
    dies. Other commands on this machine find it by themselves. Ctrl-C lets the workers hand back what
    they run; the next farm up in the same folder goes on with it. A second Ctrl-C does not wait.
    """
    settings = load_settings(local={"state_dir": state_dir})
    if api:
        rest.check_exposure(rest.with_keys(settings).api)
    if flower:
        check_exposure(settings.flower, os.environ)
    stack = Stack(settings, workers=workers, flower=flower, api=api, on_event=emit_event if as_json else say_event)
    with run_stack(stack):
        if not wait_ready(stack):
            raise typer.Exit(INTERRUPTED)
        if as_json:
            emit(_as_json(stack))
        else:
            _show(stack)
        stack.wait()
        if not as_json:
            note("\nstopping: workers hand back what they run (Ctrl-C again does not wait)")
    if as_json:
        emit({"event": "stopped"})
    else:
        note("stopped; what was accepted is kept for the next farm up")


def _as_json(stack: Stack) -> dict[str, object]:
    """The addresses, without the password: it stands in farm.json, for its owner alone."""
    return {
        "event": "ready",
        "redis": address(stack.farm_settings.redis),
        "api_url": stack.api_url,
        "flower_url": stack.flower_url,
        "metrics": stack.metrics,
        "workers": stack.worker_names,
        "model": stack.settings.model.name,
        "state_dir": str(stack.folder.path),
        "pids": stack.pids,
        "pid": os.getpid(),
        "version": __version__,
    }


def _show(stack: Stack) -> None:
    out, folder = stdout(), stack.folder
    shown = table("", "")
    shown.show_header = False
    where = "its own server" if stack.settings.redis.url else f"data in {folder.data}"
    shown.add_row("Redis", f"{address(stack.farm_settings.redis)}   [dim]{where}[/dim]")
    if stack.api_url:
        keys = "" if rest.with_keys(stack.settings).api.keys == "local" else ", with a key: farm keys create"
        shown.add_row("API", f"{stack.api_url}   [dim]{stack.api_url}/docs{keys}[/dim]")
    if stack.flower_url:
        shown.add_row("Flower", stack.flower_url)
    names = ", ".join(stack.worker_names) or "none"
    shown.add_row("Workers", f"{names}   [dim]{stack.settings.model.name}[/dim]")
    shown.add_row("Logs", str(folder.logs))
    shown.add_row("Notes", f"{folder.note_path}   [dim]pages for Prometheus; the server's URL for Celery apps[/dim]")
    out.print(f"[bold green]The farm is ready[/bold green] after {duration(time.time() - stack.started_at)}.")
    out.print()
    out.print(shown)
    out.print()
    out.print("In another terminal:")
    if folder.path != DEFAULT_FOLDER.expanduser() and stack.settings.redis.url is None:
        out.print(f"  export FARM_LOCAL__STATE_DIR={shlex.quote(str(folder.path))}", soft_wrap=True)
    out.print('  farm submit "Once upon a time" --stream')
    out.print("  farm status")
    out.print("  farm top")
    out.print()
    out.print("[dim]Ctrl-C stops it; what was accepted is kept.[/dim]")
