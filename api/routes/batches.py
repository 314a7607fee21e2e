"""``/v1/batches``: make, read, list and cancel, as OpenAI's clients do. System workers drive them."""

from __future__ import annotations

from api.answers import Answer, encode
from api.auth import Guard
from api.requests import Call, whole
from api.routes.files import list_of
from api.routes.jobs import CACHE
from api.service import Service
from farm.batch_contracts import parse_batch_request
from farm.errors import InvalidRequest
from farm.ledger.batches import Batches

MOST_PAGE = 100
PAGE = 20


class BatchRoutes:
    """The endpoints."""

    def __init__(self, service: Service, guard: Guard) -> None:
        self._service = service
        self._guard = guard
        self._batches = Batches(service.jobs)

    async def create(self, call: Call) -> Answer:
        """Accept a batch."""
        tenant = await self._guard.admit(call, "submit")
        call.query()
        key = call.idempotency_key()
        body = await call.json()
        if not isinstance(body, dict):
            raise InvalidRequest("body", "must be an object with input_file_id and endpoint")
        request = parse_batch_request(body)
        self._service.check_webhook(request.webhook_url)
        batch = await self._service.call(self._batches.add, request, tenant, key)
        return Answer(encode(batch.to_dict()))

    async def list(self, call: Call) -> Answer:
        """A tenant's batches, the newest first."""
        tenant = await self._guard.admit(call, "read")
        query = call.query("after", "limit")
        limit = whole("limit", query.get("limit", str(PAGE)), 1, MOST_PAGE)
        page = await self._service.call(self._batches.page, tenant, after=query.get("after"), limit=limit)
        return Answer(encode(list_of([batch.to_dict() for batch in page.batches], page.has_more)), headers=[CACHE])

    async def read(self, call: Call) -> Answer:
        """A batch as it stands."""
        tenant = await self._guard.admit(call, "read")
        call.query()
        batch = await self._service.call(self._batches.get, call.path_params["batch_id"], tenant)
        return Answer(encode(batch.to_dict()), headers=[CACHE])

    async def cancel(self, call: Call) -> Answer:
        """Ask for the end of a batch."""
        tenant = await self._guard.admit(call, "submit")
        call.query()
        batch = await self._service.call(self._batches.cancel, call.path_params["batch_id"], tenant)
        return Answer(encode(batch.to_dict()))
