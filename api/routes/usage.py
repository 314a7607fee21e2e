"""``/v1/usage``: jobs and tokens by tenant and day."""

from __future__ import annotations

from api.answers import Answer, Header, encode
from api.auth import Guard
from api.errors import ScopeMissing
from api.requests import Call, whole
from api.service import Service
from farm.ledger.usage import UsageDay, read_usage

DAYS = 30
MOST_DAYS = 400
MOST_DAYS_OF_EVERYONE = 31
EVERYONE = "*"  # no tenant's name
CACHE: Header = (b"cache-control", b"private, no-cache")


class UsageRoutes:
    """The endpoint. It raises what becomes an answer."""

    def __init__(self, service: Service, guard: Guard) -> None:
        self._service = service
        self._guard = guard

    async def read(self, call: Call) -> Answer:
        """What the key's tenant used; with the scope admin, what any or every tenant did."""
        principal = await self._guard.identify(call, "read")
        query = call.query("days", "tenant")
        tenant = query.get("tenant", principal.tenant)
        if tenant != principal.tenant and "admin" not in principal.scopes:
            raise ScopeMissing("this key may read its own tenant's usage alone; others' need one with the scope admin")
        most = MOST_DAYS_OF_EVERYONE if tenant == EVERYONE else MOST_DAYS
        days = whole("days", query.get("days", str(DAYS)), 1, most)
        found = await self._service.call(_read, self._service, None if tenant == EVERYONE else tenant, days)
        return Answer(encode({"usage": [day.to_dict() for day in found]}), headers=[CACHE])


def _read(service: Service, tenant: str | None, days: int) -> list[UsageDay]:
    return read_usage(service.jobs, tenant, days=days)
