"""Who asks, and whether it may: keys, their scopes, their tenants' rates; and the door of a farm without keys."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from api.answers import Header
from api.errors import HostRefused, KeyRefused, ScopeMissing, limit_headers
from api.requests import Call
from api.service import Service
from farm.ledger.keyring import KEY_MARK, SCOPES, Keyring, Principal
from farm.ledger.tenants import Allowance, Tenants
from farm.settings import Settings

REMEMBER_S = 4.0  # a revoked key opens nothing after 5 s; asking takes some of them
MOST_REMEMBERED = 10_000
TAKES_PER_CALL = 100
OURS = KEY_MARK.encode()
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")

Scope = Literal["submit", "read"]
"""What a path asks of a key. The third scope, admin, adds to what ``read`` shows: see ``routes.usage``."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What a secret was found to be. ``until`` is when to ask again."""

    principal: Principal | None
    has_rate: bool
    until: float


class Guard:
    """Lets requests in, or raises why not. For one event loop."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._needs_key = needs_key(service.settings)
        self._local = Principal("", service.settings.client.tenant, frozenset(SCOPES))
        self._hosts = {*LOOPBACK_NAMES, service.settings.api.host}
        self._keyring = Keyring(service.jobs)
        self._tenants = Tenants(service.jobs)
        self._takes = service.batcher(self._take_each, TAKES_PER_CALL)
        self._known: dict[bytes, _Known] = {}
        self._asking: dict[bytes, asyncio.Task[_Known]] = {}

    async def admit(self, call: Call, scope: Scope) -> str:
        """The tenant whose request this is. Raises what ``identify`` does."""
        return (await self.identify(call, scope)).tenant

    async def identify(self, call: Call, scope: Scope) -> Principal:
        """Whose request this is, and what they may do.

        Raises KeyRefused, ScopeMissing, HostRefused, TooManyRequests, ServerUnreachable.
        """
        given = call.head.get(b"authorization")
        # OpenAI's clients can't do without a key, so on a farm that needs none any will do that is not one of ours.
        if not self._needs_key and (given is None or OURS not in given):
            self._check_host(call)
            return self._local
        known = await self._look_up(given)
        if known.principal is None:
            raise KeyRefused("this key is unknown or was revoked; ask whoever runs the farm for another one")
        if scope not in known.principal.scopes:
            raise ScopeMissing(f"this key may not {scope}; it may {', '.join(sorted(known.principal.scopes))}")
        if known.has_rate:
            allowance = await self._takes(known.principal.tenant)
            allowance.check()
            call.scope["state"]["headers"] = rate_headers(allowance)
        return known.principal

    async def _look_up(self, given: bytes | None) -> _Known:
        scheme, _, secret = (given or b"").partition(b" ")
        if scheme.lower() != b"bearer" or not secret:
            raise KeyRefused("there is no key; send the header Authorization: Bearer bf_…")
        digest = hashlib.sha256(secret).digest()
        known = self._known.get(digest)
        if known is not None and known.until > time.monotonic():
            return known
        if (asking := self._asking.get(digest)) is None:
            asking = self._asking[digest] = asyncio.create_task(self._ask(digest, secret.strip().decode("latin-1")))
            asking.add_done_callback(lambda _: self._asking.pop(digest, None))
        return await asyncio.shield(asking)  # one who goes away must not take the answer from the others

    async def _ask(self, digest: bytes, secret: str) -> _Known:
        principal, has_rate = await self._service.call(self._find, secret)
        self._known.pop(digest, None)
        known = self._known[digest] = _Known(principal, has_rate, time.monotonic() + REMEMBER_S)
        while len(self._known) > MOST_REMEMBERED:
            del self._known[next(iter(self._known))]
        return known

    def _check_host(self, call: Call) -> None:
        """Keep web pages out: a browser names the page's own host, or says where the request comes from."""
        host = call.header(b"host") or ""
        if host.rpartition(":")[0] not in self._hosts and host not in self._hosts:
            raise HostRefused("without a key this farm answers only to this machine's own name, such as 127.0.0.1")
        origin = call.header(b"origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise HostRefused("without a key this farm answers no other web page")

    # On a thread.

    def _find(self, secret: str) -> tuple[Principal | None, bool]:
        principal = self._keyring.find(secret)
        if principal is None:
            return None, False
        return principal, self._tenants.get(principal.tenant).limits.requests_per_s is not None

    def _take_each(self, tenants: list[str]) -> Sequence[Allowance]:
        return [self._tenants.take(tenant) for tenant in tenants]


def needs_key(settings: Settings) -> bool:
    """Whether requests without a key are refused."""
    return settings.api.keys != "local"


def rate_headers(allowance: Allowance) -> list[Header]:
    """What a tenant has left of its requests."""
    if allowance.burst is None:
        return []
    return limit_headers("requests", allowance.burst, allowance.requests_left, allowance.reset_s)
