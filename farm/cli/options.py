"""Options and settings that several commands share."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from farm.connection import address, connect, our_errors
from farm.errors import InvalidRequest, ServerUnreachable
from farm.ledger.tenants import LIMITS, check_limit
from farm.local.discover import discover, nowhere, running_farm
from farm.settings import Settings, load_settings

QUEUEING = "How to queue"

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
StateDir = Annotated[
    Path,
    typer.Option(
        metavar="DIR", help="Where data, logs and addresses are kept.", envvar="FARM_LOCAL__STATE_DIR", show_envvar=True
    ),
]
Tenant = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Whose jobs these are; tenants share the farm by weight.",
        show_default="FARM_CLIENT__TENANT, default",
        rich_help_panel=QUEUEING,
    ),
]

JobIds = Annotated[
    list[str],
    typer.Argument(
        metavar="JOB...", help="Ids of jobs; - reads them from standard input, with spaces or newlines between them."
    ),
]
NamedTenant = Annotated[
    str, typer.Option("--tenant", metavar="NAME", help="Whose jobs the key is for.", show_default=False)
]
Weight = Annotated[
    float | None,
    typer.Option(
        metavar="X", help="The tenant's share, in proportion to the others'; 1 until set.", show_default=False
    ),
]
LimitOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=N",
        help=f"A limit of the tenant's: {', '.join(LIMITS)}. N may be none, or default for the settings'.",
        show_default=False,
    ),
]


def parse_limits(values: list[str]) -> dict[str, float | None]:
    """Limits given as NAME=N: a number, infinity for none, None for default. Raises InvalidRequest."""
    words = {"none": math.inf, "default": None}
    limits: dict[str, float | None] = {}
    for value in values:
        name, _, number = value.partition("=")
        try:
            limits[name] = words[number] if number in words else float(number)
        except ValueError:
            raise InvalidRequest("--limit", f"{value[:60]!r} is no limit; give NAME=N, as queued_jobs=1000") from None
        check_limit(name, limits[name])
    return limits


def job_ids(words: list[str]) -> list[str]:
    """The ids, each once, with those of standard input in place of a ``-``. Raises InvalidRequest if there are none."""
    found = [job_id for word in words for job_id in (standard_input("JOB").split() if word == "-" else [word])]
    if not found:
        raise InvalidRequest("JOB", "standard input holds no id; farm submit --no-wait prints one")
    return list(dict.fromkeys(found))


def standard_input(field: str) -> str:
    """All of it. Raises InvalidRequest, which names the field that it is for."""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise InvalidRequest(field, "standard input is not UTF-8 text; convert it") from None


def given(**values: Any) -> dict[str, Any]:
    """The values that were given: all but None and empty lists."""
    return {name: value for name, value in values.items() if value is not None and value != []}


def reachable_settings() -> Settings:
    """The settings with a server that answers. Raises ServerUnreachable when none is named and none runs here."""
    named = load_settings()
    if named.redis.url is None and running_farm(named) is None:
        raise ServerUnreachable(nowhere(named))
    settings = discover(named)
    where = address(settings.redis)
    try:
        with our_errors(where), connect(settings.redis) as client:
            client.ping()
    except ServerUnreachable:
        if named.redis.url is not None:
            raise
        raise ServerUnreachable(
            f"the farm in {named.local.folder} is there, but its Redis at {where} does not answer; see logs/redis.log "
            "in that folder, or stop the farm and start it again: farm up"
        ) from None
    return settings
