"""The options for a request's fields, for every command that asks for completions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Annotated, Any

import typer

from farm.cli.options import QUEUEING, given
from farm.cli.output import note
from farm.contracts import Request
from farm.egress import Egress, TargetRefused, parse_target
from farm.settings import Settings

SAMPLING = "How to generate"


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


_STOP = "A string that ends the text; give it up to 4 times."
_PRIORITY = "high, normal or low: high goes before normal, normal before low."
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
    "webhook_url": Annotated[str | None, _field("webhook_url", "URL", QUEUEING, "--webhook", default=False)],
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


def warn_of_webhook(settings: Settings, params: Mapping[str, Any]) -> None:
    """Say so if only the settings of system workers, which are not known here, can have a webhook called.

    Raises TargetRefused for what is no URL.
    """
    if (url := params.get("webhook_url")) is None:
        return
    target = parse_target(url, "--webhook")
    try:
        Egress(settings.webhooks.allowed).check(target, "--webhook")
    except TargetRefused as error:
        note(f"{error}\nThe settings of system workers count. farm status JOB says how the call went.")
