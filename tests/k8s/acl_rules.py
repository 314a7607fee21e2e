"""Read users.acl, and what the code needs of it: the commands of the scripts and of the modules that a role runs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from farm.ledger import scripts

REPOSITORY = Path(__file__).resolve().parents[2]
# The driver's names for commands that are called otherwise.
COMMANDS = {"delete": "del", "client_id": "client|id", "client_unblock": "client|unblock"}
NOT_COMMANDS = {"pipeline", "close", "execute", "register_script", "connection_pool"}


@dataclass
class Rights:
    """Commands on keys and channels: what stands before a user's brackets, or in one of them."""

    commands: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    channels: set[str] = field(default_factory=set)
    flags: set[str] = field(default_factory=set)

    @property
    def is_of_the_ledger(self) -> bool:
        return any(key.startswith(("~{farm}:", "%R~{farm}:")) for key in self.keys)


def users(path: Path) -> dict[str, list[Rights]]:
    """Each user's own rights, then those of its selectors."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found: dict[str, list[Rights]] = {}
    for name, rules in re.findall(r"^user (\S+) ((?:.|\n(?!user ))*)", text, re.MULTILINE):
        selectors = re.findall(r"\(([^)]*)\)", rules)
        found[name] = [_rights(re.sub(r"\([^)]*\)", " ", rules)), *map(_rights, selectors)]
    return found


def _rights(text: str) -> Rights:
    rights = Rights()
    for rule in text.split():
        if rule[0] == "+":
            rights.commands.add(rule[1:])
        elif rule[0] in "~%":
            rights.keys.add(rule)
        elif rule[0] == "&":
            rights.channels.add(rule[1:])
        else:
            rights.flags.add(rule)
    return rights


def of_scripts(*names: str) -> set[str]:
    """The commands that these scripts call, with the functions of common.lua that they reach."""
    functions = _functions(_lua("common"))
    found: set[str] = set()
    for name in names:
        waiting, reached = [_lua(name), functions[""]], {""}
        while waiting:
            text = waiting.pop()
            found |= {command.lower() for command in re.findall(r"redis\.call\('([A-Z]+)'", text)}
            for called in set(re.findall(r"\b([a-z_]+)\b", text)) & (set(functions) - reached):
                reached.add(called)
                waiting.append(functions[called])
    return found


def of_modules(*paths: str) -> set[str]:
    """The commands that these modules send themselves, through a client or a pipeline."""
    found: set[str] = set()
    for path in paths:
        text = (REPOSITORY / path).read_text(encoding="utf-8")
        called = set(re.findall(r"\b(?:client|pipe)\.([a-z_]+)\(", text)) - NOT_COMMANDS
        found |= {COMMANDS.get(name, name) for name in called}
    return found


def _lua(name: str) -> str:
    text = (resources.files(scripts) / f"{name}.lua").read_text(encoding="utf-8")
    return "\n".join(line.partition("--")[0] for line in text.splitlines())


def _functions(text: str) -> dict[str, str]:
    """The top-level functions of a script by name; what stands outside of them under ''."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in text.splitlines():
        if begins := re.match(r"local function (\w+)", line):
            name = begins[1]
        found.setdefault(name, []).append(line)
        if name and (line == "end" or (begins and line.rstrip().endswith(" end"))):
            name = ""
    return {name: "\n".join(lines) for name, lines in found.items()}
