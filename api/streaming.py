"""Server-sent events: what every stream of this API does, whatever it says.

Own rather than a library's: one task for the client's leaving is all that a stream needs beside the request's, and
events go into no log.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.newsroom import Listener
from api.service import Service

HEARTBEAT = b": still here\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]


class Stream(Response, ABC):
    """A stream over what some listeners hear. It ends when ``chunks`` does, or when the client leaves."""

    def __init__(self, service: Service, listeners: Sequence[Listener]) -> None:
        """The stream lets go of the listeners at its end."""
        self.status_code = 200
        self.background = None
        self._service = service
        self._listeners = listeners

    @abstractmethod
    def chunks(self) -> AsyncIterator[bytes]:
        """What is sent. Ends soon after the listeners were told that there is no more."""

    async def end(self) -> None:
        """Called once, however the stream ended."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        leaving = asyncio.create_task(until_left(receive))
        leaving.add_done_callback(lambda _: self._leave())
        try:
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            async for chunk in self.chunks():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            leaving.cancel()
            for listener in self._listeners:
                self._service.news.exit(listener)
            await self.end()

    def _leave(self) -> None:
        for listener in self._listeners:
            listener.leave()


async def until_left(receive: Receive) -> None:
    """Return once the client is gone. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
