"""The outermost layer: every request gets an id, and whatever is raised becomes an answer."""

from __future__ import annotations

import os
import re
import time
import traceback
from collections.abc import MutableMapping
from typing import Any

import structlog
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from api.answers import Answer
from api.errors import Gone, answer_to, answer_to_bug, answer_to_http
from farm.errors import FarmError

_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
log = structlog.get_logger(__name__)


class Gate:
    """An ASGI app around another one. An id that the caller gave is kept, if it is fit for headers and logs."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        state = scope.setdefault("state", {})
        request_id = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        if not _ID.match(request_id):
            request_id = os.urandom(12).hex().encode()
        status = 0

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *state.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        error: Answer | None = None
        try:
            await self.app(scope, receive, answer)
        except Gone:
            return
        except FarmError as raised:
            error = answer_to(raised)
        except HTTPException as raised:
            error = answer_to_http(raised)
        except Exception as raised:
            _log_bug(raised, request_id)
            error = answer_to_bug()
        if error is not None:
            if status:
                return  # it began to answer: all that is left is to break off
            await error(scope, receive, answer)
        log.debug(
            "request",
            request_id=request_id.decode(),
            method=scope["method"],
            path=scope["path"],
            status=status,
            ms=round(1000 * (time.perf_counter() - began), 1),
        )


def _log_bug(raised: Exception, request_id: bytes) -> None:
    # Neither the message nor any value: they may hold a prompt.
    where = "".join(traceback.format_tb(raised.__traceback__))
    log.error("request failed", request_id=request_id.decode(), error=type(raised).__name__, where=where)
