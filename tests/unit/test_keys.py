"""The list of keys and the scripts that build their names agree."""

from __future__ import annotations

import re

import pytest

from farm import keys, schema
from farm.ledger import scripts

pytestmark = pytest.mark.fast

TYPES = {
    **dict.fromkeys(("HGET", "HSET", "HMGET", "HSETNX", "HINCRBY", "HDEL", "HEXISTS"), "hash"),
    **dict.fromkeys(("LRANGE", "RPUSH", "LLEN", "LTRIM"), "list"),
    **dict.fromkeys(("ZADD", "ZREM", "ZRANGE", "ZSCORE", "ZCARD", "ZRANGEBYSCORE", "ZRANK"), "zset"),
    **dict.fromkeys(("SADD", "SREM", "SCARD", "SMEMBERS", "SRANDMEMBER"), "set"),
    **dict.fromkeys(("GET", "SET", "INCRBY", "DECRBY"), "string"),
    **dict.fromkeys(("XADD",), "stream"),
}
DECLARED = {key.name.split(":")[0]: key for key in keys.KEYS}
BUILDERS = {"key_job": "job", "key_out": "out", "key_history": "history", "key_queue": "queue", "key_lanes": "lanes"}
BUILDERS |= {"key_hooks": "hooks", "key_batch": "batch", "key_parts": "batch_parts", "key_batches": "batches"}
BUILDERS |= {"key_file": "file", "key_files": "files", "key_hook_lanes": "hook_lanes"}
BUILDERS |= {
    "key_worker": "worker",
    "key_held": "held",
    "key_jobs": "jobs",
    "key_usage": "usage",
    "key_kept": "kept",
    "key_place": "place",
}
ALL = [*scripts.NAMES, *(f"shared/{part}" for part in scripts.SHARED)]


def touched(name: str) -> set[str]:
    """The keys that the head of a script lists."""
    head = re.search(r"-- Touches: (.*?)\.\n(?!--   )", scripts.text_of(name), re.DOTALL)
    assert head, f"{name}.lua lists no keys"
    words = re.sub(r"\s*\n--\s*", " ", head[1]).split(",")
    return {word.strip().rstrip(":") for word in words if not word.strip().startswith(("and ", "what "))}


@pytest.mark.parametrize("name", ALL)
def test_every_key_that_a_script_builds_is_declared(name: str) -> None:
    """A name after the prefix in Lua is a declared key, with a colon exactly if its name has parts that vary."""
    found = re.findall(r"P \.\. '([a-z_]+)(:?)", scripts.text_of(name))
    for word, colon in found:
        assert word in DECLARED, f"{name}.lua builds {word}, which farm/keys.py does not list"
        assert bool(colon) == (":" in DECLARED[word].name)


@pytest.mark.parametrize("name", ALL)
def test_commands_fit_the_types_declared(name: str) -> None:
    """A script uses hash commands on hashes, list commands on lists, and so on."""
    calls = re.findall(r"redis\.call\('([A-Z]+)', (?:P \.\. '([a-z_]+)|(key_[a-z_]+))", scripts.text_of(name))
    for command, word, builder in calls:
        if command in TYPES:
            assert DECLARED[word or BUILDERS[builder]].type == TYPES[command], f"{name}.lua: {command} {word}{builder}"


@pytest.mark.parametrize("name", scripts.NAMES)
def test_heads_list_declared_keys(name: str) -> None:
    """What the head of a script says it touches are keys of the list."""
    assert touched(name) <= set(DECLARED), touched(name) - set(DECLARED)


@pytest.mark.parametrize("name", scripts.NAMES)
def test_heads_list_all_that_a_script_touches_itself(name: str) -> None:
    """A script names no key in its own body that its head leaves out."""
    text = scripts.text_of(name)
    body = "\n".join(line.partition("--")[0] for line in text.splitlines())
    own = set(re.findall(r"P \.\. '([a-z_]+)", body)) | {BUILDERS[b] for b in re.findall(r"(key_[a-z_]+)\(", body)}
    inherits = "what a" in text
    assert own <= touched(name) | ({"job", "out", "history", "totals", "counts"} if inherits else set())


@pytest.mark.parametrize("name", ALL)
def test_lines_of_a_script_fit_the_screen(name: str) -> None:
    """A script's lines are no longer than 120 columns, as Python's are."""
    assert not [line for line in scripts.text_of(name).splitlines() if len(line) > 120]


def test_helpers_spell_the_names_of_the_list() -> None:
    """The functions and constants of farm/keys.py make names that are in its list."""
    made = [
        keys.job("x"),
        keys.out("x"),
        keys.history("x"),
        keys.worker("x"),
        keys.held("x"),
        keys.counts("m"),
        keys.queue("m", "p", "t"),
        keys.lanes("m", "p"),
        keys.jobs("t"),
        keys.kept("t"),
        keys.usage("t", "2026-11-23"),
        keys.used("2026-11-23"),
        keys.hooks("t:r"),
        keys.hook_lanes("t"),
        keys.file("x"),
        keys.files("t"),
        keys.place("t", "x"),
        keys.batch("x"),
        keys.batch_parts("x"),
        keys.batches("t"),
    ]
    made += [value for name, value in vars(keys).items() if name.isupper() and isinstance(value, str)]
    shapes = [re.compile(re.sub(r"<[a-z]+>", "[^:]+", re.escape(keys.PREFIX) + key.name) + "$") for key in keys.KEYS]
    for name in made:
        assert name == keys.PREFIX or any(shape.match(name) for shape in shapes), name


def test_all_keys_share_one_hash_tag() -> None:
    """One tag keeps all keys on one node of a cluster, so that a script may touch any of them."""
    assert re.fullmatch(r"\{[a-z]+\}:", keys.PREFIX)
    assert len({key.name for key in keys.KEYS}) == len(keys.KEYS)


def test_scripts_read_no_clock_but_the_servers() -> None:
    """Only the shared part asks for the time, and it asks the server."""
    for name in scripts.NAMES:
        assert "'TIME'" not in scripts.text_of(name)
        assert "os.time" not in scripts.text_of(name)
    assert scripts.shared().count("'TIME'") == 1


def test_scripts_have_the_schemas_of_the_code() -> None:
    """The shared part compares with the numbers that farm/schema.py names, and one release may be rolled back."""
    found = re.search(r"local WRITES, READS = (\d+), (\d+)", scripts.shared())
    assert found
    assert [int(number) for number in found.groups()] == [schema.WRITES, schema.READS]
    assert schema.FIRST <= schema.WRITES <= schema.READS <= schema.WRITES + 1
