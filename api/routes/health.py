"""``/livez`` and ``/readyz``: for load balancers and probes, without a key."""

from __future__ import annotations

import time

from api.answers import Answer, encode
from api.requests import Call
from api.service import Service
from farm.ledger.overview import overview

REMEMBER_S = 1.0  # probes of many balancers ask the server once

ALIVE = encode({"status": "ok"})


class HealthRoutes:
    """The endpoints."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._ready: tuple[float, bytes] = (0.0, b"")

    async def livez(self, call: Call) -> Answer:
        """200 as long as this process answers."""
        call.query()
        return Answer(ALIVE)

    async def readyz(self, call: Call) -> Answer:
        """200 if the ledger can be reached. Whether workers live does not matter: what is accepted waits for them."""
        call.query()
        until, body = self._ready
        if time.monotonic() >= until:
            body = await self._service.call(self._look)
            self._ready = (time.monotonic() + REMEMBER_S, body)
        return Answer(body)

    def _look(self) -> bytes:
        seen = overview(self._service.jobs)
        models = {load.model: "serving" if load.slots else "waiting" for load in seen.models}
        return encode({"status": "ready", "models": models})
