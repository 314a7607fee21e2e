"""What users.acl says, and what it must say of the ledger: the commands and keys of the code that each role runs.

    python -m tests.k8s.acl_rules --write      # after scripts or commands have changed

Commands are found in the Lua scripts, with the shared functions that they reach, and in the Python modules that
send some themselves. Every role reads all of the ledger that it has commands for, and writes what its code writes.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from farm import keys
from farm.ledger import scripts

REPOSITORY = Path(__file__).resolve().parents[2]
RULES = REPOSITORY / "k8s" / "base" / "redis" / "users.acl"

LEDGER = "farm/ledger/"
CLIENT = ("jobs.py", "listing.py", "streams.py", "usage.py")
SUBMITTING = {"submit", "cancel", "position", "pieces", "mark"}
KEEPING_FILES = {"file_add", "file_drop", "batch_add", "batch_cancel"}
# What each role runs of ours: scripts, and modules of the ledger that send commands themselves.
RUNS = {
    "producer": (SUBMITTING, CLIENT),
    "api": (
        SUBMITTING | {"take", "gauges"} | KEEPING_FILES,
        (*CLIENT, "keyring.py", "overview.py", "tenants.py", "files.py", "batches.py", "gauges.py"),
    ),
    "worker": (
        set(scripts.NAMES) - {"pieces", "take", "revive", "purge", "webhook_rotate"} - KEEPING_FILES | {"file_drop"},
        (
            *("jobs.py", "upkeep.py", "attempts.py", "../../workers/host.py"),
            *("streams.py", "watch.py", "driving.py", "batches.py", "files.py", "webhooks.py", "gauges.py"),
        ),
    ),
    "operator": (
        {"cancel", "revive", "purge", "webhook_rotate"},
        ("jobs.py", "dead.py", "glance.py", "keyring.py", "overview.py", "tenants.py", "usage.py", "webhooks.py"),
    ),
    "monitor": (set[str](), ("overview.py", "usage.py")),
}
# Whoever runs the farm writes these, whatever else uses the same modules.
OPERATORS = {"weights", "limits", "keys"}
# Where this version lists what earlier ones list elsewhere. An update replaces one process after the other, so a role
# that writes the one may write the other.
BEFORE = {"kept": (("zadd", "finished"), ("zrem", "finished"), ("incrby", "finished_bytes"))}
# What connecting and calling scripts takes, on no key.
CONNECTION = {
    "auth",
    "hello",
    "ping",
    "client|setinfo",
    "client|setname",
    "client|id",
    "client|unblock",
    "time",
    "info",
}
CONNECTION |= {
    "eval",
    "evalsha",
    "script|load",
    "script|exists",
    "wait",
    "waitaof",
    "multi",
    "exec",
    "watch",
    "unwatch",
}

# The driver's names for commands that are called otherwise.
COMMANDS = {"delete": "del", "client_id": "client|id", "client_unblock": "client|unblock"}
NOT_COMMANDS = {"pipeline", "close", "execute", "execute_command", "transaction", "connection_pool"}
READS = {"exists", "get", "hexists", "hget", "hgetall", "hkeys", "hmget", "llen", "lrange", "scard", "smembers"}
READS |= {
    "srandmember",
    "xread",
    "xrevrange",
    "zcard",
    "zrange",
    "zrangebyscore",
    "zrank",
    "zrevrangebyscore",
    "zscore",
}
READS |= {"hvals", "hrandfield", "hstrlen", "zcount", "zmscore", "zrevrange", "zrevrank"}

MARK = "    # the ledger, by python -m tests.k8s.acl_rules --write\n"
Uses = set[tuple[str, str | None]]


@dataclass
class Rights:
    """Commands on keys and channels: what stands before a user's brackets, or in one of them."""

    commands: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    channels: set[str] = field(default_factory=set)
    flags: set[str] = field(default_factory=set)


def users(path: Path = RULES) -> dict[str, list[Rights]]:
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


def selectors(role: str) -> str:
    """What a role needs on the ledger, as lines of users.acl."""
    called, modules = RUNS[role]
    uses = {use for use in (*_of_scripts(called), *_of_modules(modules)) if use[0] not in CONNECTION}
    reads = {command for command, _ in uses if command in READS}
    writes = {(command, family) for command, family in uses if command not in READS}
    for family in {family for _, family in writes} & set(BEFORE):
        writes |= set(BEFORE[family])
    if role != "operator":
        writes = {(command, family) for command, family in writes if family not in OPERATORS}
    unknown = {command for command, family in writes if family is None}
    assert not unknown, f"{role}: which keys do these write? {sorted(unknown)}"
    lines = [_line(["%R~{farm}:*"], reads)]
    if writes:
        lines.append(_line(sorted(_pattern(family) for _, family in writes), {command for command, _ in writes}))
    return "".join(lines)


def _line(patterns: Iterable[str], commands: set[str]) -> str:
    text = f"({' '.join(dict.fromkeys(patterns))} {' '.join(f'+{command}' for command in sorted(commands))})"
    wrapped = textwrap.wrap(text, 112, break_long_words=False, break_on_hyphens=False)
    return "".join(f"    {' ' if number else ''}{line}\n" for number, line in enumerate(wrapped))


def _pattern(family: str | None) -> str:
    [key] = [key for key in keys.KEYS if key.name.partition(":")[0] == family]
    return f"~{keys.PREFIX}{family}{':*' if ':' in key.name else ''}"


def _of_scripts(names: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """(command, family of its key) for all calls of these scripts and of what they reach of the shared parts."""
    functions = _functions(_code(scripts.shared()))
    builders = _builders(functions)
    for name in names:
        waiting, reached = [_lua(name), functions[""]], {""}
        while waiting:
            text = waiting.pop()
            yield from lua_calls(text, builders)
            for called in set(re.findall(r"\b([a-z_]+)\b", text)) & (set(functions) - reached):
                reached.add(called)
                waiting.append(functions[called])


def lua_calls(text: str, builders: dict[str, str]) -> Iterator[tuple[str, str | None]]:
    """(command, family of its key) for every call in a piece of Lua; DEL may name several keys.

    builders: the functions that build a key, and the family that each builds.
    """
    for found in re.finditer(r"redis\.call\('([A-Z]+)'(?:,\s*)?", text):
        named = _arguments(text[found.end() :])
        for argument in named if found[1] == "DEL" else named[:1]:
            yield found[1].lower(), _family(argument, text, builders)


def _arguments(text: str) -> list[str]:
    """A call's arguments, from the first on that is a key: up to the bracket that ends the call. One at least, though
    empty."""
    found, depth = [""], 0
    for character in text:
        depth += (character in "({") - (character in ")}")
        if depth < 0:
            break
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return [argument.strip() for argument in found]


def _family(expression: str, text: str, builders: dict[str, str]) -> str | None:
    if named := re.match(r"P \.\. '([a-z_]+)", expression):
        return named[1]
    word = re.match(r"([a-z_]+)", expression)
    if word is None:
        return None
    if word[1] in builders:
        return builders[word[1]]
    # A variable that holds the key, or a parameter: then a caller has it.
    if held := re.search(rf"local {word[1]} = ([^\n]+)", text):
        return _family(held[1], text, builders)
    begins = re.match(r"local function (\w+)\(([^)]*)\)", text)
    parameters = begins[2].split(", ") if begins else []
    if begins is None or word[1] not in parameters:
        return None
    everything = _code(scripts.shared())
    [given] = {call.split(", ")[parameters.index(word[1])] for call in _callers(begins[1], everything)}
    around = next(body for body in _functions(everything).values() if f"{begins[1]}({given}" in body and body != text)
    return _family(given, around, builders)


def _callers(function: str, text: str) -> list[str]:
    """The arguments of each call of a function."""
    return re.findall(rf"(?<!function ){function}\(([^)]*)\)", text)


def _builders(functions: dict[str, str]) -> dict[str, str]:
    """The functions that build a key, and the family that each builds."""
    found = ((name, re.search(r"return P \.\. '([a-z_]+)", text)) for name, text in functions.items())
    return {name: built[1] for name, built in found if built and name.startswith("key_")}


def _of_modules(paths: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """(command, family of its key) for what these modules send."""
    for path in paths:
        yield from module_calls((REPOSITORY / LEDGER / path).read_text(encoding="utf-8"))


def module_calls(text: str) -> Iterator[tuple[str, str | None]]:
    """(command, family of its key) for every call of a client's or a pipeline's method in a piece of Python."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name = node.func.attr
        if name in NOT_COMMANDS or not re.search(r"\b(client|pipe)$", ast.unparse(node.func.value)):
            continue
        for argument in node.args if name == "delete" else node.args[:1] or [ast.Constant("")]:
            spelled = re.search(r"\bkeys\.([A-Za-z_]+)", ast.unparse(argument))
            yield COMMANDS.get(name, name), _named(spelled[1]) if spelled else None


def _named(name: str) -> str:
    """The family that a name in farm/keys.py stands for."""
    value = getattr(keys, name)
    if callable(value):
        value = value(*["x"] * len(inspect.signature(value).parameters))
    return str(value).removeprefix(keys.PREFIX).partition(":")[0]


def _lua(name: str) -> str:
    return _code(scripts.text_of(name))


def _code(text: str) -> str:
    """Lua without its comments."""
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


def written(text: str) -> str:
    """users.acl with the ledger's part of every role as the code needs it."""
    for role in RUNS:
        pattern = rf"(^user {role} (?:.|\n(?!user ))*?{re.escape(MARK)})((?:    [( ].*\n)*?)(?=    #|\n|\Z)"
        text, count = re.subn(pattern, lambda found, role=role: found[1] + selectors(role), text, flags=re.MULTILINE)  # type: ignore[misc]
        assert count == 1, role
    return text


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        RULES.write_text(written(RULES.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        sys.stdout.write(written(RULES.read_text(encoding="utf-8")))
