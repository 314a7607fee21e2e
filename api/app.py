"""The app: which paths there are, what shares what, and when it starts and ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from api import batch_operations, openai_operations, openapi, operations
from api.auth import Guard, needs_key
from api.gate import Gate
from api.recorder import Recorder
from api.requests import Call
from api.routes.batches import BatchRoutes
from api.routes.completions import CompletionRoutes
from api.routes.docs import DocsRoutes
from api.routes.events import EventRoutes
from api.routes.files import FileRoutes
from api.routes.health import HealthRoutes
from api.routes.jobs import JobRoutes
from api.routes.metrics import MetricsRoutes
from api.routes.playground import PlaygroundRoutes
from api.routes.usage import UsageRoutes
from api.service import Service
from farm import __version__
from farm.local.discover import discover
from farm.settings import Settings, load_settings


def create_app(settings: Settings | None = None) -> Api:
    """The API over a farm; nothing is sent to its server yet. settings: the environment's unless given.

    Raises SettingsError when no server is named and no local farm runs.
    """
    settings = discover(settings or load_settings())
    service = Service(settings)
    guard = Guard(service)
    app = Api(service)
    jobs, events, completions, health, docs, playground = (
        JobRoutes(service, guard),
        EventRoutes(service, guard),
        CompletionRoutes(service, guard),
        HealthRoutes(service),
        DocsRoutes(app),
        PlaygroundRoutes(),
    )
    add = app.add_api_route
    add("/v1/jobs", jobs.submit, methods=["POST"], **operations.SUBMIT)
    add("/v1/jobs", jobs.list, methods=["GET"], **operations.LIST)
    add("/v1/jobs/{job_id}", jobs.read, methods=["GET"], **operations.READ)
    add("/v1/jobs/{job_id}/cancel", jobs.cancel, methods=["POST"], **operations.CANCEL)
    add("/v1/jobs/{job_id}/events", events.follow, methods=["GET"], **operations.EVENTS)
    add("/v1/completions", completions.complete, methods=["POST"], **openai_operations.COMPLETE)
    add("/v1/models", completions.models, methods=["GET"], **openai_operations.MODELS)
    add("/v1/models/{model}", completions.model, methods=["GET"], **openai_operations.MODEL)
    files, batches = FileRoutes(service, guard), BatchRoutes(service, guard)
    add("/v1/files", files.upload, methods=["POST"], **batch_operations.UPLOAD)
    add("/v1/files", files.list, methods=["GET"], **batch_operations.LIST_FILES)
    add("/v1/files/{file_id}", files.read, methods=["GET"], **batch_operations.READ_FILE)
    add("/v1/files/{file_id}", files.delete, methods=["DELETE"], **batch_operations.DELETE_FILE)
    add("/v1/files/{file_id}/content", files.content, methods=["GET"], **batch_operations.CONTENT)
    add("/v1/batches", batches.create, methods=["POST"], **batch_operations.CREATE)
    add("/v1/batches", batches.list, methods=["GET"], **batch_operations.LIST)
    add("/v1/batches/{batch_id}", batches.read, methods=["GET"], **batch_operations.READ)
    add("/v1/batches/{batch_id}/cancel", batches.cancel, methods=["POST"], **batch_operations.CANCEL)
    add("/v1/usage", UsageRoutes(service, guard).read, methods=["GET"], **operations.USAGE)
    add("/livez", health.livez, methods=["GET"], **operations.LIVEZ)
    add("/readyz", health.readyz, methods=["GET"], **operations.READYZ)
    for path, endpoint in (
        ("/", playground.root),
        ("/playground", playground.page),
        ("/playground/{name}", playground.asset),
        ("/docs", docs.page),
        ("/docs/{name}", docs.asset),
        ("/openapi.json", docs.openapi),
        ("/metrics", MetricsRoutes(service, guard, app.recorder).metrics),
    ):
        add(path, endpoint, methods=["GET"], include_in_schema=False, response_model=None)
    add("/v1/chat/completions", completions.chat, methods=["POST"], include_in_schema=False, response_model=None)
    return app


class Route(APIRoute):
    """A path whose endpoint takes the request as it is and answers it.

    FastAPI's own handler would look for dependencies and build models, for 30 us a request that finds none.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app = self._answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self.endpoint(Call(scope, receive, send))
        await response(scope, receive, send)


class Api(FastAPI):
    """FastAPI for its paths and its OpenAPI document. One layer is around the router in place of FastAPI's own seven,
    so ``add_middleware`` does nothing here.
    """

    def __init__(self, service: Service) -> None:
        super().__init__(
            title="Bloomfarm",
            version=__version__,
            description=operations.DESCRIPTION,
            openapi_url=None,
            redirect_slashes=False,
            lifespan=self._lifespan,
        )
        self.router.route_class = Route
        self.recorder = Recorder()
        self._gate = Gate(self.router, self.recorder, logs_requests=service.settings.logs.level == "DEBUG")
        self.state.settings = service.settings
        self.state.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        await self._gate(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """The document, completed with what FastAPI can't see."""
        if not self.openapi_schema:
            self.openapi_schema = openapi.complete(super().openapi(), needs_key(self.state.settings))
        return self.openapi_schema

    @asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        service: Service = self.state.service
        try:
            yield {"stop": service.stop, "api": service.settings.api}
        finally:
            service.stop()
            await service.aclose()
