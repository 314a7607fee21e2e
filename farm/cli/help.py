"""How commands are asked: help in plain text that fits 80 columns, options by purpose, and words that are text."""

from __future__ import annotations

import os
import re
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from farm.errors import InvalidRequest

HELP_NAMES = ("-h", "--help")
CONTEXT = {"help_option_names": list(HELP_NAMES), "max_content_width": 100}
# What stands for a byte of a command line that is not UTF-8.
_NO_TEXT = re.compile("[\ud800-\udfff]")


class Command(TyperCommand):
    """A command whose help is plain. An option's ``rich_help_panel`` names its group."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raises InvalidRequest for bytes that are no text, but in the name of a file, which may be any."""
        left: list[str] = super().parse_args(ctx, args)
        for param in self.get_params(ctx):
            value = ctx.params.get(param.name)
            for word in value if isinstance(value, list | tuple) else [value]:
                if isinstance(word, str) and _NO_TEXT.search(word) and not os.path.lexists(word):
                    name = param.opts[0] if param.param_type_name == "option" else param.metavar or param.name.upper()
                    raise InvalidRequest(name.strip("[]."), "is not UTF-8 text; convert it")
        return left

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Arguments as manuals have them: ``PROMPT``, ``JOB...``, ``[JOB]``."""
        pieces: list[str] = super().collect_usage_pieces(ctx)
        return [re.sub(r"[{}]|(?<=\[)\[|\](?=\])", "", piece).replace("......", "...") for piece in pieces]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments first, then each group in the order of its first option, the common options last."""
        write_options(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        del ctx
        write_examples(self.epilog, formatter)


class Group(TyperGroup):
    """A command with commands of its own, and help as plain as theirs."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The commands first."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(80)) for name, command in self.commands.items()])
        write_options(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        del ctx
        write_examples(self.epilog, formatter)


def commands() -> typer.Typer:
    """An app for one module's commands."""
    return typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None, context_settings=CONTEXT)


def examples(*lines: str) -> str:
    """An epilog of examples, one a line."""
    return "\n".join(lines)


def write_options(command: Any, ctx: Any, formatter: Any) -> None:
    """Write the parameters of a command, grouped."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None:
            is_argument = param.param_type_name == "argument"
            group = getattr(param, "rich_help_panel", None) or ("Arguments" if is_argument else "Options")
            # typer tells an argument's type in Python's words, and a default in words between brackets of its own.
            name = re.sub(r" <.*>$", "", record[0])
            groups.setdefault(group, []).append((name, re.sub(r"default: \((.*?)\)", r"default: \1", record[1])))
    common = groups.pop("Options", [])
    for name, records in [*groups.items(), ("Options", common)]:
        if records:
            with formatter.section(name):
                formatter.write_dl(records)


def write_examples(epilog: str | None, formatter: Any) -> None:
    """Write an epilog as it is, under a heading."""
    if epilog:
        formatter.write("\nExamples:\n")
        for line in epilog.splitlines():
            formatter.write(f"  {line}\n" if line else "\n")
