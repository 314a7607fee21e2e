"""Options and settings that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from farm.errors import ServerUnreachable
from farm.local.discover import discover, running_farm
from farm.settings import Settings, load_settings

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
StateDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Where data, logs and addresses are kept.", envvar="FARM_LOCAL__STATE_DIR", show_envvar=True
    ),
]


def reachable_settings(**groups: Any) -> Settings:
    """The settings with the server to talk to. Raises ServerUnreachable when none is named and none runs here."""
    settings = load_settings(**groups)
    if settings.redis.url is None and running_farm(settings) is None:
        raise ServerUnreachable(
            f"no farm is running in {settings.local.folder} and FARM_REDIS__URL is not set; start one with: farm up"
        )
    return discover(settings)
