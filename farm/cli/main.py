"""The ``farm`` command: which subcommands there are, and how an error becomes a line and an exit code.

A subcommand's module is imported when it is run, so that ``farm --help`` and completion need not load the drivers.
"""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from farm import __version__
from farm.cli.exits import FAILED, code_of
from farm.cli.help import CONTEXT, examples, write_examples, write_options
from farm.errors import FarmError

RUN, ASK, LOOK = "Run a farm", "Ask it", "Look after it"
EPILOG = examples(
    "farm demo                                        all of it, in half a minute",
    "farm up                                          a farm on this machine, until Ctrl-C",
    'farm submit "Once upon a time" --stream          ask it something',
    "farm batch prompts.jsonl -o completions.jsonl    ask it a lot",
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A subcommand: where it lives, and how ``farm --help`` lists it."""

    module: str
    panel: str
    help: str


COMMANDS = {
    "demo": Entry("farm.cli.demo", RUN, "Try a whole farm on a bundled file of prompts."),
    "up": Entry("farm.cli.up", RUN, "Run a farm on this machine until Ctrl-C."),
    "worker": Entry("farm.cli.processes", RUN, "Run one worker."),
    "api": Entry("farm.cli.processes", RUN, "Run the REST API."),
    "flower": Entry("farm.cli.processes", RUN, "Run Flower, the web page that shows workers and tasks."),
    "submit": Entry("farm.cli.jobs", ASK, "Ask for the completion of a prompt."),
    "wait": Entry("farm.cli.wait", ASK, "Wait for jobs, and print their completions."),
    "batch": Entry("farm.cli.batch", ASK, "Complete a file of prompts, and go on where an earlier run stopped."),
    "status": Entry("farm.cli.status", ASK, "Show how the farm stands, or one job."),
    "cancel": Entry("farm.cli.jobs", ASK, "End jobs that have not ended."),
    "top": Entry("farm.cli.top", LOOK, "Watch the farm work, on one screen."),
    "dead": Entry("farm.cli.dead", LOOK, "Look at dead jobs, queue them again or delete them."),
    "keys": Entry("farm.cli.keys", LOOK, "Make API keys, list and revoke them."),
    "tenants": Entry("farm.cli.tenants", LOOK, "Show tenants' weights, limits and queues, or change them."),
    "usage": Entry("farm.cli.tenants", LOOK, "Show the jobs and tokens of each tenant and day."),
    "plan": Entry("farm.cli.plan", LOOK, "Show how a model would lie on devices."),
    "doctor": Entry("farm.cli.doctor", LOOK, "Check server, ports, model and folder, and say what to do."),
}


class _Later(TyperCommand):
    """A listed subcommand; becomes the real one when it is run."""

    def __init__(self, name: str, entry: Entry) -> None:
        super().__init__(name, help=entry.help)
        self.entry = entry

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        group = typer.main.get_group(import_module(self.entry.module).app)
        return group.commands[str(self.name)].make_context(info_name, args, parent=parent, **extra)


class _Commands(TyperGroup):
    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        for name, entry in COMMANDS.items():
            self.add_command(_Later(name, entry))

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order in which people meet them."""
        del ctx
        return list(COMMANDS)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, entry in COMMANDS.items():
            panels.setdefault(entry.panel, []).append((name, entry.help))
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)
        write_options(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        del ctx
        write_examples(self.epilog, formatter)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=CONTEXT,
    epilog=EPILOG,
)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"bloomfarm {__version__}\n")
        raise typer.Exit


@app.callback()
def farm(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Large language models over a durable queue: a job that was accepted is answered, whatever dies on the way.

    FARM_REDIS__URL names the server; without it the farm that runs on this machine is used. Exit codes: 0 ok, 1 failed,
    2 usage, 3 server unreachable.
    """
    del version


def main() -> None:
    """Run the command line. An error is one line on stderr and an exit code, never a traceback."""
    _open_streams()
    try:
        app(prog_name="farm")
    except FarmError as error:
        sys.stderr.write(f"farm: {error}\n")
        sys.exit(code_of(error))
    except OSError as error:
        sys.stderr.write(f"farm: {error.strerror or error}{f': {error.filename}' if error.filename else ''}\n")
        sys.exit(FAILED)


def _open_streams() -> None:
    """Have all three, also where a caller closed one, and write escapes for what their encoding lacks."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nothing = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(nothing, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
