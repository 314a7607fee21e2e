"""Reference pages, made from the code: what they say can't be out of date."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

import click
import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import farm
from api.app import create_app
from farm import keys, schema
from farm.cli.main import app as command_line
from farm.settings import PREFIX, Settings, load_settings

METHODS = ("get", "post", "delete", "put", "patch")


def pages() -> dict[str, str]:
    """The text of each page by its name."""
    return {"rest": rest(), "python": python(), "cli": cli(), "settings": settings(), "keys": redis_keys()}


def python() -> str:
    """Every public name of the package; mkdocstrings fills in signatures and docstrings."""
    parts = [
        "# Python\n",
        "`from farm import …`: all of these.\n",
    ]
    homes = {name: home for home, names in farm._HOMES.items() for name in names}
    order = ("Farm", "Job", "AsyncFarm", "AsyncJob", "Request", "Completion", "Delta", "JobView", "JobState")
    rest = [name for name in farm.__all__ if name not in order and name != "Settings"]
    parts += [f"::: {homes[name]}.{name}\n" for name in (*order, *rest)]
    return "\n".join(parts)


def settings() -> str:
    """Every setting with its default and its docstring."""
    parts = [
        "# Settings\n",
        "Read from the environment when a command starts. A misspelt name is an error that names the nearest one. Times"
        " are in seconds, sizes in bytes.\n",
    ]
    for group, field in Settings.model_fields.items():
        kind = field.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, BaseModel)
        notes = _notes(kind)
        parts.append(f"## {group}\n")
        if kind.__doc__ and kind.__doc__ != BaseModel.__doc__:
            parts.append(inspect.cleandoc(kind.__doc__) + "\n")
        parts.append("| setting | default | what it is |\n|---|---|---|")
        for name, one in kind.model_fields.items():
            default = "" if one.default is PydanticUndefined else _shown(one.default)
            parts.append(f"| `{PREFIX}{group.upper()}__{name.upper()}` | {default} | {_cell(notes.get(name, ''))} |")
        parts.append("")
    return "\n".join(parts)


def redis_keys() -> str:
    """Every key that the farm keeps on the server."""
    parts = [
        "# Redis keys\n",
        f"All begin with `{keys.PREFIX}`. The ledger's schema is {schema.WRITES}: see "
        "[upgrade and roll back](../upgrade.md). Celery's own lists and sets lie beside them.\n",
        "| key | type | lives | holds |\n|---|---|---|---|",
    ]
    parts += [f"| `{key.name}` | {key.type} | {_cell(key.ttl)} | {_cell(key.holds)} |" for key in keys.KEYS]
    return "\n".join(parts) + "\n"


def cli() -> str:
    """The help of every command."""
    parts = [
        "# Command line\n",
        "Every command takes `--json` and `--help`. Exit codes: 0 ok, 1 failed, 2 usage, 3 server unreachable.\n",
    ]
    group = typer.main.get_command(command_line)
    assert isinstance(group, click.Group) or hasattr(group, "list_commands")
    root = typer.Context(group, info_name="farm")
    for name in group.list_commands(root):  # type: ignore[attr-defined]
        command = group.get_command(root, name)  # type: ignore[attr-defined]
        _describe(command, name, "farm", parts)
    return "\n".join(parts)


def _describe(command: Any, name: str, before: str, parts: list[str]) -> None:
    """A command's help, and those of its subcommands."""
    context = command.make_context(name, [], parent=typer.Context(command, info_name=before), resilient_parsing=True)
    command, path = context.command, f"{before} {name}"
    parts += [f"{'#' * (1 + len(path.split()) - 1)} {path}\n", "```text", command.get_help(context).strip(), "```\n"]
    for child in getattr(command, "commands", {}):
        _describe(command.commands[child], child, path, parts)


def rest() -> str:
    """Every operation of the API, and every shape that it takes or gives."""
    document = create_app(load_settings(redis={"url": "redis://127.0.0.1"}, api={"keys": "required"})).openapi()
    parts = ["# REST\n", "What `/openapi.json` says, for reading. [How to use it](../rest.md).\n"]
    for path, operations in document["paths"].items():
        for method in METHODS:
            if method in operations:
                parts += _operation(method, path, operations[method])
    parts.append("## Shapes\n")
    for name, shape in sorted(document["components"]["schemas"].items()):
        parts += _shape(name, shape)
    return "\n".join(parts)


def _operation(method: str, path: str, what: dict[str, Any]) -> list[str]:
    parts = [f"## {method.upper()} {path}\n", f"{what.get('summary', '')}. {what.get('description', '')}\n"]
    if parameters := what.get("parameters"):
        parts.append("| parameter | in | what it is |\n|---|---|---|")
        parts += [f"| `{one['name']}` | {one['in']} | {_cell(one.get('description', ''))} |" for one in parameters]
        parts.append("")
    for kind, body in what.get("requestBody", {}).get("content", {}).items():
        parts.append(f"Takes `{kind}`: {_kind(body.get('schema', {}))}.\n")
    parts.append("| answer | what it means | body |\n|---|---|---|")
    for status, answer in sorted(what["responses"].items()):
        bodies = ", ".join(_kind(body.get("schema", {})) for body in answer.get("content", {}).values())
        parts.append(f"| {status} | {_cell(answer.get('description', ''))} | {_cell(bodies)} |")
    return [*parts, ""]


def _shape(name: str, shape: dict[str, Any]) -> list[str]:
    parts = [f"### {name}\n"]
    if about := shape.get("description"):
        parts.append(about + "\n")
    if "enum" in shape:
        parts.append("One of " + ", ".join(f"`{value}`" for value in shape["enum"]) + ".\n")
    if fields := shape.get("properties"):
        needed = shape.get("required", [])
        parts.append("| field | type | what it is |\n|---|---|---|")
        for field, what in fields.items():
            mark = " (needed)" if field in needed else ""
            parts.append(f"| `{field}`{mark} | {_cell(_kind(what))} | {_cell(what.get('description', ''))} |")
        parts.append("")
    return parts


def _kind(shape: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "$ref" in shape:
        name = shape["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in shape or "oneOf" in shape:
        return " or ".join(_kind(one) for one in shape.get("anyOf") or shape["oneOf"])
    if "enum" in shape:
        return ", ".join(f"`{value}`" for value in shape["enum"])
    if "const" in shape:
        return f"`{shape['const']}`"
    if shape.get("type") == "array":
        return f"list of {_kind(shape.get('items', {}))}"
    return str(shape.get("type", "anything"))


def _notes(kind: type[BaseModel]) -> dict[str, str]:
    """The docstrings under a class's fields."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, str] = {}
    for field, note in zip(tree.body, tree.body[1:], strict=False):
        is_note = isinstance(note, ast.Expr) and isinstance(note.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_note:
            found[field.target.id] = inspect.cleandoc(str(note.value.value))  # type: ignore[attr-defined]
    return found


def _shown(value: object) -> str:
    return "" if value is None else f"`{value}`" if str(value) else "empty"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
