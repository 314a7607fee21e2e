"""``/metrics``: for Prometheus. Where keys are needed it asks for one with the scope admin: it names all tenants.

The same page, without a key, is at ``FARM_TELEMETRY__PORT`` if that is set.
"""

from __future__ import annotations

from api.answers import Answer
from api.auth import Guard
from api.errors import ScopeMissing
from api.recorder import Recorder, page
from api.requests import Call
from api.service import Service


class MetricsRoutes:
    """The endpoint."""

    def __init__(self, service: Service, guard: Guard, recorder: Recorder) -> None:
        self._service = service
        self._guard = guard
        self._registry = recorder.registry(service.jobs)

    async def metrics(self, call: Call) -> Answer:
        """The page. A server that does not answer is one of its metrics."""
        principal = await self._guard.identify(call, "read")
        if "admin" not in principal.scopes:
            raise ScopeMissing("metrics tell of all tenants; this needs a key with the scope admin")
        body, content_type = await self._service.call(page, self._registry, call.header(b"accept") or "")
        return Answer(body, media=content_type.encode())
