"""Who may do what on Redis: users.acl, held to the scripts, to farm/keys.py and to a real server.

That each role can do what it must is shown by real workers, clients and Flower: test_farm.py. Here: and nothing more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from farm import keys
from farm.ledger import scripts
from tests.k8s import acl_rules
from tests.k8s.acl_rules import Rights
from tests.k8s.manifests import build
from tests.k8s.pods import Cluster

USERS = acl_rules.users()
ROLES = ("producer", "api", "worker", "operator", "flower", "monitor")

# Who works, who leads, whether there is memory, what goes next: no business of those who submit.
WORKERS_ALONE = {"workers", "worker", "names", "models", "beat", "grace", "leader", "full", "vclock", "usage_days"}
WORKERS_ALONE |= {"batch_parts", "schema", "dropped"}
# What an API keeps of those who ask it.
APIS_ALONE = {"pace", "keys_used"}
# Files and batches come in through an API; workers end them.
APIS_AND_WORKERS = {"file", "files", "file_bytes", "files_due", "files_trash", "place"}
APIS_AND_WORKERS |= {"batch", "batches", "batches_open", "batches_due"}
WRITES = {
    "hash": ("HSET", "f", "v"),
    "list": ("RPUSH", "v"),
    "zset": ("ZADD", "1", "m"),
    "set": ("SREM", "m"),
    "string": ("INCRBY", "1"),
    "stream": ("XADD", "*", "f", "v"),
}

NEVER = (
    "FLUSHALL",
    "FLUSHDB",
    "KEYS *",
    "SCAN 0",
    "CONFIG SET appendonly no",
    "CONFIG GET appendonly",
    "CONFIG REWRITE",
    "DEBUG SLEEP 1",
    "SHUTDOWN",
    "ACL SETUSER me on",
    "ACL LIST",
    "MONITOR",
    "SCRIPT FLUSH",
    "SCRIPT KILL",
    "FUNCTION LIST",
    "CLIENT KILL 127.0.0.1:1",
    "CLIENT LIST",
    "CLIENT PAUSE 1000",
    "REPLICAOF NO ONE",
    "FAILOVER",
    "BGREWRITEAOF",
    "MODULE LIST",
    "SAVE",
    "SELECT 1",
    "SWAPDB 0 1",
    "PSYNC ? -1",
    "GET another-app",
    "SET another-app 1",
    "DEL {farmer}:job:1",
    "DEL {farm}",
    "PUBLISH another-app x",
    "SUBSCRIBE another-app",
    "PSUBSCRIBE *",
)


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    """A look at everything on a server that was started from the manifests."""
    cluster = Cluster(build("local"), tmp_path_factory.mktemp("acl"))
    try:
        cluster.start_redis()
        with cluster.client("admin") as client:
            yield client
    finally:
        cluster.stop()


def _may(admin: redis.Redis, user: str, *command: str) -> bool:
    try:
        said = admin.execute_command("ACL DRYRUN", user, *command)
    except redis.exceptions.ResponseError as error:
        raise AssertionError(f"{command}: {error}") from error
    assert said in ("OK", b"OK") or "no permissions" in str(said), said
    return said in ("OK", b"OK")


def test_a_role_has_what_its_code_needs_and_no_more() -> None:
    """On the ledger a role may send the commands of its scripts and modules, and write the keys that they write."""
    text = acl_rules.RULES.read_text(encoding="utf-8")
    assert text == acl_rules.written(text), "run python -m tests.k8s.acl_rules --write and look at what has changed"


def test_every_call_of_a_line_counts() -> None:
    """A role's rights hold the second command of a line, the one inside another's arguments, and one over many lines;
    each with its own keys alone."""
    lua = """
        if redis.call('DEL', key_job(id), P .. 'mark') == 0 then redis.call('HSET', P .. 'tally', 'x', f(1, 2)) end
        redis.call('DECRBY', P .. 'waiting', redis.call('ZREM',
          key_jobs(tenant), id))
    """
    found = list(acl_rules.lua_calls(lua, {"key_job": "job", "key_jobs": "jobs"}))
    first = [("del", "job"), ("del", "mark"), ("hset", "tally")]
    assert found == [*first, ("decrby", "waiting"), ("zrem", "jobs")]

    python = """
seen = self.client.get(keys.SCHEMA), jobs.client.hset(keys.TALLY, "x", pipe.incrby(keys.DEAD, 1))
pipe.delete(
    keys.job(job_id), keys.out(job_id)
); pipe.zrem(keys.jobs(tenant), keys.EVENTS)
client.close()
"""
    second = {
        ("get", "schema"),
        ("hset", "tally"),
        ("incrby", "dead"),
        ("del", "job"),
        ("del", "out"),
        ("zrem", "jobs"),
    }
    assert set(acl_rules.module_calls(python)) == second


def test_every_script_is_some_roles() -> None:
    """Each script of the ledger is called by a role, so that its rights are looked at."""
    called = {name for names, _ in acl_rules.RUNS.values() for name in names}
    assert called == set(scripts.NAMES)


def test_rights_are_spelled_out() -> None:
    """Every user starts from nothing, and gets commands by name: no category, no wildcard, no key of everybody."""
    for name, (own, *selectors) in USERS.items():
        assert own.flags <= {"on", "off", "nopass", "-@all"}, name
        assert name == "default" or "-@all" in own.flags
        assert ("nopass" in own.flags) == (name == "probe")
        for rights in (own, *selectors):
            assert not [command for command in rights.commands if command.startswith("@")]
            assert not {"~*", "%R~*", "allkeys", "allchannels", "*"} & (rights.keys | rights.channels | rights.flags)
    assert USERS["default"] == [Rights(flags={"off"})]
    assert USERS["probe"][0].commands == {"ping"}
    assert len(USERS["probe"]) == 1


@pytest.mark.parametrize("command", NEVER)
def test_nobody_can(admin: redis.Redis, command: str) -> None:
    """No role may look at or change the server, other applications' keys and channels, or the ledger as a whole."""
    for role in (*ROLES, "probe"):
        assert not _may(admin, role, *command.split(" ")), role


@pytest.mark.parametrize("key", keys.KEYS, ids=lambda key: key.name)
def test_who_writes_a_key(admin: redis.Redis, key: keys.Key) -> None:
    """Workers write the ledger, producers and APIs what they submit and cancel, operators tenants' limits and API keys.

    An API keeps files and batches, which workers end. Flower and monitor write nothing; only workers delete, and
    operators what they may write.
    """
    name = keys.PREFIX + re.sub(r"<\w+>", "x", key.name)
    family = key.name.partition(":")[0]
    command, *rest = WRITES[key.type]
    writers = {role for role in ROLES if _may(admin, role, command, name, *rest)}
    if family in WORKERS_ALONE:
        assert writers == {"worker"}
    elif family in APIS_ALONE:
        assert writers - {"operator"} == {"api"}
    elif family in APIS_AND_WORKERS:
        assert writers == {"api", "worker"}
    elif family == "webhook_secrets":
        assert writers == {"operator", "worker"}
    elif family in acl_rules.OPERATORS:
        assert writers == {"operator"}
    else:
        assert writers - {"operator"} == {"worker", "producer", "api"}
    deleters = {role for role in ROLES if _may(admin, role, "DEL", name)}
    assert deleters - {"operator"} <= {"worker"}
    assert "operator" not in deleters or "operator" in writers


def test_who_commands_workers(admin: redis.Redis) -> None:
    """Only Flower may send commands to workers; only workers take messages; everyone else's results stay theirs."""
    told = {role for role in ROLES if _may(admin, role, "PUBLISH", "/0.celery.pidbox", "shutdown")}
    assert told == {"flower"}
    takers = {role for role in ROLES if _may(admin, role, "BRPOP", "farm.tiny-bloom", "1")}
    assert takers == {"worker"}
    senders = {role for role in ROLES if _may(admin, role, "LPUSH", "farm.default", "x")}
    assert senders == {"worker", "producer"}
    readers = {role for role in ROLES if _may(admin, role, "GET", "celery-task-meta-x")}
    assert readers == {"worker", "producer"}
    listeners = {role for role in ROLES if _may(admin, role, "PSUBSCRIBE", "/0.celeryev/*")}
    assert listeners == {"flower"}


def test_what_the_exporter_is_told(admin: redis.Redis) -> None:
    """Prometheus' exporter gets an answer to all that it asks at a scrape, except for the slow log's entries, which
    would show prompts."""
    asked = ("CLIENT SETNAME redis_exporter", "INFO ALL", "LATENCY LATEST", "LATENCY HISTOGRAM", "SLOWLOG LEN")
    asked += ("SLOWLOG GET 1",)
    assert {line for line in asked if not _may(admin, "monitor", *line.split(" "))} == {"SLOWLOG GET 1"}


def test_who_is_told_of_the_server(admin: redis.Redis) -> None:
    """Parts that export metrics of the ledger may ask for the server's memory; those who submit or operate may not."""
    assert {role for role in ROLES if _may(admin, role, "INFO", "memory")} == {"api", "worker", "monitor"}


def test_the_default_user_is_off(admin: redis.Redis) -> None:
    """Who has no password gets in nowhere, and a probe can ping and no more."""
    port = admin.connection_pool.connection_kwargs["port"]
    once = Retry(NoBackoff(), 0)
    for login in ({}, {"username": "worker", "password": "guess"}, {"username": "default", "password": ""}):
        stranger = redis.Redis(port=port, retry=once, **login)  # type: ignore[arg-type]
        with stranger, pytest.raises(redis.exceptions.AuthenticationError):
            stranger.ping()
    flags = admin.acl_getuser("default")
    assert flags is not None
    assert "nopass" not in flags["flags"]
