"""The outermost layer: every request gets an id and is counted, and whatever is raised becomes an answer."""

from __future__ import annotations

import os
import re
import time
from collections.abc import MutableMapping
from typing import Any

import structlog
from starlette.exceptions import HTTPException
from starlette.routing import Match, Router
from starlette.types import Receive, Scope, Send

from api.answers import Answer, Header
from api.errors import Gone, answer_to, answer_to_bug, answer_to_http
from api.recorder import NOWHERE, Recorder
from farm.errors import FarmError
from farm.logs import log_defect

_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
log = structlog.get_logger(__name__)


class Gate:
    """An ASGI app around a router. An id that the caller gave is kept, if it is fit for headers and logs."""

    def __init__(self, router: Router, recorder: Recorder, *, logs_requests: bool) -> None:
        self._router = router
        self._recorder = recorder
        self._logs_requests = logs_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        began = time.perf_counter()
        state = scope.setdefault("state", {})
        request_id = _id_of(scope["headers"])
        status, is_stream = 0, False

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal status, is_stream
            if not status:
                status = message["status"]
                is_stream = _is_stream(message["headers"])
                if is_stream:
                    self._recorder.stream_opened()
                kind = "stream" if is_stream else "wait" if state.get("is_waiting") else ""
                self._note(scope, status, kind, time.perf_counter() - began)
                message["headers"] = [*message["headers"], *state.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        error: Answer | None = None
        try:
            await self._router(scope, receive, answer)
        except Gone:
            if not status:
                self._note(scope, 0, "", 0.0)
            return
        except FarmError as raised:
            self._recorder.rejected(raised)
            error = answer_to(raised)
        except HTTPException as raised:
            error = answer_to_http(raised, self._methods(scope))
        except Exception as raised:
            log_defect(log, "request failed", raised, request_id=request_id.decode())
            error = answer_to_bug()
        finally:
            if is_stream:
                self._recorder.stream_closed()
        if error is not None and not status:  # an answer that has begun can only be broken off
            await error(scope, receive, answer)
        if self._logs_requests:
            log.debug(
                "request",
                request_id=request_id.decode(),
                method=scope["method"],
                path=scope["path"],
                status=status,
                ms=round(1000 * (time.perf_counter() - began), 1),
            )

    def _note(self, scope: Scope, status: int, kind: str, seconds: float) -> None:
        """Count an answer under its route's template, with how it was waited for."""
        template: str = getattr(scope.get("route"), "path", NOWHERE)
        self._recorder.answered(scope["method"], f"{template} ({kind})" if kind else template, status, seconds)

    def _methods(self, scope: Scope) -> set[str]:
        """All that a path knows, over all of its routes."""
        found = (route for route in self._router.routes if route.matches(scope)[0] is not Match.NONE)
        return {method for route in found for method in getattr(route, "methods", None) or ()}


def _id_of(headers: list[Header]) -> bytes:
    for name, value in headers:
        if name == b"x-request-id" and _ID.match(value):
            return value
    return os.urandom(12).hex().encode()


def _is_stream(headers: list[Header]) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)
