"""``farm worker``, ``farm api`` and ``farm flower``: this process becomes the part.

So its signals and its exit code are the part's own.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import Annotated

import typer

from farm import rest
from farm.cli.help import Command, commands, examples
from farm.cli.options import Json, given, reachable_settings
from farm.flower import check_exposure, check_start
from farm.listening import url_of
from farm.local.environ import child_environ, with_values
from farm.local.server import free_port
from farm.settings import Settings, load_settings

MAX_PORT = 65535
app = commands()


class Role(StrEnum):
    """What a worker does."""

    MODEL = "model"
    SYSTEM = "system"


@app.command(
    cls=Command,
    epilog=examples(
        "farm worker",
        "FARM_MODEL__ID=bigscience/bloom-7b1 farm worker --name gpu-1",
        "farm worker --role system",
    ),
)
def worker(
    role: Annotated[
        Role | None,
        typer.Option(
            metavar="ROLE",
            help="model generates; system has no engine: it keeps queues moving, drives batches, calls webhooks.",
            show_default="FARM_WORKER__ROLE, model",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The same after a restart, and used by no other.",
            show_default="FARM_WORKER__NAME, host and process id",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run one worker.

    SIGTERM or Ctrl-C hands its jobs back to the farm, with the tokens they have, and ends it within seconds, with 0; a
    second one does not wait. It ends with 78 when it can't serve its model. With FARM_TELEMETRY__PORT set it answers
    /livez, /readyz and /metrics there. Everything else comes from settings too (FARM_MODEL__ID,
    FARM_ENGINE__MAX_SLOTS …).
    """
    settings = reachable_settings()
    changes = given(role=role.value if role else None, name=name)
    _become("workers", with_values(settings, worker=changes), as_json)


@app.command(
    cls=Command,
    epilog=examples(
        "farm api",
        "farm api --port 8080 --processes 4",
        "FARM_REDIS__URL=redis://host:6379/0 farm api --host 0.0.0.0     with keys: farm keys create",
    ),
)
def api(
    host: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="Where to listen.", show_default="FARM_API__HOST, 127.0.0.1"),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=MAX_PORT, metavar="PORT", help="Where to listen.", show_default="FARM_API__PORT, 8000"),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Processes that share the port.", show_default="FARM_API__PROCESSES, 1"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the REST API.

    Its page /docs shows what it can do. Requests need a key (farm keys create), but for the farm that farm up runs on
    this machine. SIGTERM or Ctrl-C ends it: what it has begun is answered, and whoever follows a job is told to come
    back.
    """
    # Whether keys are needed must be asked before the server is found: a local farm names none.
    wanted = rest.with_keys(with_values(load_settings(), api=given(host=host, port=port, processes=processes)))
    settings = reachable_settings().model_copy(update={"api": wanted.api})
    settings = with_values(settings, api={"port": settings.api.port or free_port()})
    rest.check_exposure(settings.api)
    rest.check_start(settings.api)
    if not as_json:
        url = url_of(settings.api.host, settings.api.port)
        sys.stdout.write(f"API: {url}   {url}/docs   (Ctrl-C stops it)\n")
        sys.stdout.flush()
    _become("api", settings, as_json)


@app.command(cls=Command, epilog=examples("farm flower", "FLOWER_BASIC_AUTH=me:secret farm flower --host 0.0.0.0"))
def flower(
    host: Annotated[
        str | None,
        typer.Option(
            metavar="HOST",
            help="Where to listen; beyond this machine it needs FLOWER_BASIC_AUTH.",
            show_default="FARM_FLOWER__HOST, 127.0.0.1",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=MAX_PORT, metavar="PORT", help="Where to listen.", show_default="FARM_FLOWER__PORT, 5555"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run Flower, the web page that shows workers and tasks.

    A task's UUID is its job's id. Prompts and completions are on none of its pages.
    """
    settings = with_values(reachable_settings(), flower=given(host=host, port=port))
    check_exposure(settings.flower, os.environ)
    check_start(settings)
    if not as_json:
        url = url_of(settings.flower.host, settings.flower.port)
        sys.stdout.write(f"Flower: {url}   (Ctrl-C stops it)\n")
        sys.stdout.flush()
    _become("farm.flower", settings, as_json)


def _become(module: str, settings: Settings, as_json: bool) -> None:
    """Replace this process by one of the farm's programs."""
    if as_json:
        settings = with_values(settings, logs={"format": "json"})
    os.execve(sys.executable, [sys.executable, "-m", module], child_environ(settings))  # noqa: S606
