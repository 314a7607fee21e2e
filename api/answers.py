"""HTTP answers with little ceremony: a body that is bytes already, and headers that are too."""

from __future__ import annotations

from collections.abc import Iterable

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Header = tuple[bytes, bytes]
JSON: Header = (b"content-type", b"application/json")


class Answer(Response):
    """JSON, unless ``media`` says otherwise. A 204 or 304 has no body and no type."""

    def __init__(
        self, body: bytes, status: int = 200, headers: Iterable[Header] | None = None, *, media: bytes | None = None
    ) -> None:
        self.status_code = status
        self.body = body
        self.background = None
        self.raw_headers = list(headers or ())
        if status not in (204, 304):
            self.raw_headers.append(JSON if media is None else (b"content-type", media))
            self.raw_headers.append((b"content-length", b"%d" % len(body)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body})


def encode(value: object) -> bytes:
    """A value as JSON."""
    return orjson.dumps(value)
