"""``farm doctor``: every check, its finding and what to do, for a person or as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import typer
from rich.table import Table
from rich.text import Text

from farm.cli.exits import FAILED, UNREACHABLE
from farm.cli.help import Command, commands, examples
from farm.cli.options import Json
from farm.cli.output import emit, stdout
from farm.doctor.checks import Check, worst
from farm.doctor.machine import check_machine
from farm.doctor.server import check_server
from farm.local.discover import running_farm, with_url
from farm.settings import Settings, load_settings

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
NAME_WIDTH = 13
app = commands()


@app.command(cls=Command, epilog=examples("farm doctor", "FARM_MODEL__ID=bigscience/bloom-7b1 farm doctor"))
def doctor(as_json: Json = False) -> None:
    """Check server, ports, model and folder, and say what to do.

    Fails (1) when something is wrong, 3 when a server is named and does not answer. A warning is no failure.
    """
    settings = load_settings()
    checks = []
    for check in _all(settings):
        checks.append(check)
        if not as_json:
            _show(check)
    verdict = worst(checks)
    if as_json:
        emit({"verdict": verdict, "checks": [asdict(check) for check in checks]})
    if any(check.name == "server" and check.verdict == "fail" for check in checks):
        raise typer.Exit(UNREACHABLE)
    if verdict == "fail":
        raise typer.Exit(FAILED)


def _all(settings: Settings) -> Iterator[Check]:
    running = None if settings.redis.url else running_farm(settings)
    if settings.redis.url is not None:
        yield from check_server(settings)
    elif running is not None:
        yield from check_server(with_url(settings, running["redis_url"]))
    else:
        yield Check("server", "warn", f"no farm runs in {settings.local.folder}", "farm up starts one")
    yield from check_machine(settings, running)


def _show(check: Check) -> None:
    row = Table.grid(padding=(0, 2, 0, 0))
    row.add_column(width=4)
    row.add_column(width=NAME_WIDTH)
    row.add_column(overflow="fold")
    row.add_row(Text(check.verdict, STYLES[check.verdict]), check.name, Text(check.found))
    if check.remedy:
        row.add_row("", "", Text(f"-> {check.remedy}"))
    stdout().print(row)
