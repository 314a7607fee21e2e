"""API keys: who may ask, for which tenant and what. The server holds only their hashes.

A key's secret is 256 random bits, which nobody can guess, so that SHA-256 is enough to store it: a slow hash is for
passwords that people choose. A key is found by its id, the first digits of that hash, and then the whole hash is
compared in constant time.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hmac import compare_digest
from typing import Any

from farm import keys
from farm.connection import our_errors
from farm.errors import InvalidRequest, nearest
from farm.ledger.jobs import Jobs
from farm.ledger.tenants import Tenants, check_name

SCOPES = ("submit", "read", "admin")
USUAL_SCOPES = ("submit", "read")
KEY_MARK = "bf_"
SECRET = re.compile(rf"^{KEY_MARK}[A-Za-z0-9_-]{{43}}\Z")
ID_DIGITS = 16
USED_EVERY_S = 60
MOST_NAME_CHARS = 128


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever sent a key: its tenant, and what it may do."""

    key_id: str
    tenant: str
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What is known of a key; its secret is not. Times are Unix seconds, ``last_used_at`` to the minute."""

    id: str
    tenant: str
    scopes: tuple[str, ...]
    name: str
    created_at: float
    last_used_at: float | None = None


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made: the one time that its secret is there."""

    id: str
    secret: str = field(repr=False)
    tenant: str
    scopes: tuple[str, ...]
    name: str
    created_at: float


class Keyring:
    """All keys of a farm. Thread-safe."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._tenants = Tenants(jobs)

    def create(
        self,
        tenant: str,
        *,
        scopes: Iterable[str] = USUAL_SCOPES,
        name: str = "",
        weight: float | None = None,
        limits: Mapping[str, float | None] | None = None,
    ) -> NewKey:
        """Make a key; weight and limits, if given, become its tenant's, for all its keys.

        Raises InvalidRequest before anything is written.
        """
        check_name(tenant)
        wanted = check_scopes(scopes)
        if len(name) > MOST_NAME_CHARS:
            raise InvalidRequest("name", f"has {len(name)} characters; at most {MOST_NAME_CHARS} are allowed")
        if weight is not None or limits:
            self._tenants.change(tenant, weight=weight, limits=limits)
        secret = KEY_MARK + secrets.token_urlsafe(32)
        digest = hash_of(secret)
        key_id = digest[:ID_DIGITS]
        with our_errors(self._jobs.where):
            seconds, us = self._jobs.client.time()
            created = seconds + us // 1000 / 1000
            record = {"sha256": digest, "tenant": tenant, "scopes": wanted, "name": name, "created_at": created}
            self._jobs.client.hset(keys.API_KEYS, key_id, json.dumps(record))
        return NewKey(key_id, secret, tenant, wanted, name, created)

    def list(self) -> list[KeyInfo]:
        """All keys, the newest last."""
        with our_errors(self._jobs.where), self._jobs.client.pipeline(transaction=False) as pipe:
            pipe.hgetall(keys.API_KEYS)
            pipe.hgetall(keys.API_KEYS_USED)
            records, used = pipe.execute()
        found = [_info(key_id, json.loads(record), used.get(key_id)) for key_id, record in records.items()]
        return sorted(found, key=lambda key: (key.created_at, key.id))

    def revoke(self, key_id: str) -> bool:
        """Have a key open nothing from now on; its jobs run on. Returns whether there was such a key."""
        with our_errors(self._jobs.where), self._jobs.client.pipeline(transaction=False) as pipe:
            pipe.hdel(keys.API_KEYS, key_id)
            pipe.hdel(keys.API_KEYS_USED, key_id)
            return bool(pipe.execute()[0])

    def find(self, secret: str) -> Principal | None:
        """Who has this secret; None for a key that is unknown or revoked. Raises ServerUnreachable."""
        if (key_id := id_of(secret)) is None:
            return None
        with our_errors(self._jobs.where), self._jobs.client.pipeline(transaction=False) as pipe:
            pipe.hget(keys.API_KEYS, key_id)
            pipe.hget(keys.API_KEYS_USED, key_id)
            pipe.time()
            record, used, clock = pipe.execute()
            principal = parse(secret, record)
            if principal is not None and _is_stale(used, clock[0]):
                self._jobs.client.hset(keys.API_KEYS_USED, key_id, clock[0])
        return principal


def hash_of(secret: str) -> str:
    """What the server keeps of a secret: 64 hex digits of SHA-256."""
    return hashlib.sha256(secret.encode()).hexdigest()


def id_of(secret: str) -> str | None:
    """The id of the key with this secret; None for what can't be one."""
    return hash_of(secret)[:ID_DIGITS] if SECRET.match(secret) else None


def parse(secret: str, record: str | None) -> Principal | None:
    """The holder of a secret by the record under its id; None if there is none or it is another's."""
    if record is None:
        return None
    body = json.loads(record)
    if not compare_digest(body["sha256"], digest := hash_of(secret)):
        return None
    return Principal(digest[:ID_DIGITS], body["tenant"], frozenset(body["scopes"]))


def check_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    """Scopes in their usual order. Raises InvalidRequest for none, or for one that does not exist."""
    wanted = set(scopes)
    for scope in sorted(wanted - set(SCOPES)):
        raise InvalidRequest("scope", f"{scope[:60]!r} is no scope; known: {', '.join(SCOPES)}{nearest(scope, SCOPES)}")
    if not wanted:
        raise InvalidRequest("scope", f"a key without any opens nothing; give some of {', '.join(SCOPES)}")
    return tuple(scope for scope in SCOPES if scope in wanted)


def _is_stale(used: str | None, now_s: int) -> bool:
    """Whether to note a use: once a minute is enough to find keys that nobody uses."""
    return used is None or now_s - int(used) >= USED_EVERY_S


def _info(key_id: str, body: dict[str, Any], used: str | None) -> KeyInfo:
    return KeyInfo(
        key_id, body["tenant"], tuple(body["scopes"]), body["name"], body["created_at"], float(used) if used else None
    )
