"""Options and settings that several commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from farm.connection import address, connect, our_errors
from farm.contracts import Request
from farm.errors import ServerUnreachable
from farm.local.discover import discover, running_farm
from farm.settings import Settings, load_settings

SAMPLING, QUEUEING = "How to generate", "How to queue"


def _field(name: str, metavar: str, panel: str, *flags: str, help: str | None = None, default: bool = True) -> Any:
    """An option for a request's field: its help and default are the contract's."""
    field = Request.model_fields[name]
    return typer.Option(
        *flags,
        metavar=metavar or None,
        help=help or field.description,
        show_default=str(field.default) if default else False,
        rich_help_panel=panel,
    )


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


_STOP = "A string that ends the text; give it up to 4 times."
_PRIORITY = "high, normal or low: high goes before normal, normal before low."
_IGNORE_EOS = typer.Option(
    "--ignore-eos", help=Request.model_fields["ignore_eos"].description, rich_help_panel=SAMPLING
)
REQUEST_OPTIONS: dict[str, Any] = {
    "max_tokens": Annotated[int | None, _field("max_tokens", "N", SAMPLING)],
    "temperature": Annotated[float | None, _field("temperature", "X", SAMPLING)],
    "top_p": Annotated[float | None, _field("top_p", "X", SAMPLING)],
    "top_k": Annotated[int | None, _field("top_k", "N", SAMPLING)],
    "repetition_penalty": Annotated[float | None, _field("repetition_penalty", "X", SAMPLING)],
    "seed": Annotated[int | None, _field("seed", "N", SAMPLING, default=False)],
    "stop": Annotated[list[str] | None, _field("stop", "TEXT", SAMPLING, help=_STOP, default=False)],
    "ignore_eos": Annotated[bool | None, _field("ignore_eos", "", SAMPLING, "--ignore-eos", default=False)],
    "model": Annotated[str | None, _field("model", "NAME", QUEUEING, default=False)],
    "priority": Annotated[str | None, _field("priority", "LEVEL", QUEUEING, help=_PRIORITY)],
    "deadline_s": Annotated[float | None, _field("deadline_s", "SECONDS", QUEUEING, "--deadline", default=False)],
}
"""Options by the request's field that they set."""


def request_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command all of ``REQUEST_OPTIONS`` in the place of ``params``, which holds the fields that were given."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    at = [parameter.name for parameter in own].index("params")
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in REQUEST_OPTIONS.items()
    ]
    named = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]

    @wraps(command)
    def run(**values: Any) -> None:
        asked = {name: values.pop(name) for name in REQUEST_OPTIONS}
        command(**values, params=given(**asked))

    setattr(run, "__signature__", inspect.Signature([*named[:at], *added, *named[at + 1 :]]))  # noqa: B010
    return run


def given(**values: Any) -> dict[str, Any]:
    """The values that were given: all but None and empty lists."""
    return {name: value for name, value in values.items() if value is not None and value != []}


def reachable_settings() -> Settings:
    """The settings with a server that answers. Raises ServerUnreachable when none is named and none runs here."""
    settings = load_settings()
    if settings.redis.url is None and running_farm(settings) is None:
        raise ServerUnreachable(
            f"no farm is running in {settings.local.folder} and FARM_REDIS__URL is not set; start one with: farm up"
        )
    settings = discover(settings)
    with our_errors(address(settings.redis)), connect(settings.redis) as client:
        client.ping()
    return settings
