"""HTTP as strangers may speak it: limits on a request's head, its time, and the time that an answer may wait for them.

Uvicorn's own protocol, which bounds none of them. A client that breaks one is told so in JSON, and cut off.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from api.errors import error_body
from farm.settings import ApiSettings

LINGER_S = 2.0


class Protocol(HttpToolsProtocol):
    """One connection. The app's lifespan says what holds: ``api``, the settings, and ``stop``, to call at the end."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        settings: ApiSettings = app_state["api"]
        self._most_head_bytes = settings.max_head_bytes
        self._request_s = settings.request_s
        self._head_bytes = 0
        self._is_in_head = True
        self._is_refused = False
        self._timer: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        if self._is_in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._head_bytes > self._most_head_bytes:
            self._refuse_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["give_time"] = self._give_time
        if self._timer is None:
            self._start_timer()

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._most_head_bytes:
            self._refuse_head()
            return
        self._is_in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._stop_timer()
        self._is_in_head = True
        self._head_bytes = 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall is None:
            self._stall = self.loop.call_later(self._request_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def shutdown(self) -> None:
        self.app_state["stop"]()  # streams and long polls end; the answers that are on their way are finished
        super().shutdown()

    def send_400_response(self, msg: str) -> None:
        del msg
        self._refuse(400, "this is no HTTP request", "invalid_http")

    def _refuse_head(self) -> None:
        self._refuse(
            431,
            f"the headers are larger than {self._most_head_bytes:,} bytes; send fewer or shorter ones",
            "head_too_large",
        )

    def _is_late(self) -> None:
        self._timer = None
        cycle = self.cycle
        if self._is_in_head or cycle is None:
            # Between two requests there is nothing to answer.
            if self._head_bytes:
                self._refuse(
                    408, f"the request did not come within {self._request_s:g} s; send it faster", "request_timeout"
                )
            else:
                self.transport.close()
        elif not cycle.response_started:
            cycle.disconnected = True  # its handler need not wait for the rest
            cycle.message_event.set()
            self._refuse(
                408, f"the request did not come within {self._request_s:g} s; send it faster", "request_timeout"
            )
        else:
            self.transport.abort()  # it was answered, and goes on sending

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Answer by ourselves, and close."""
        if self._is_refused or self.transport.is_closing():
            return
        body = error_body(message, "invalid_request_error", code)
        head = [
            STATUS_LINE[status],
            b"content-type: application/json\r\n",
            b"content-length: %d\r\n" % len(body),
            b"x-request-id: %s\r\n" % os.urandom(12).hex().encode(),
            b"connection: close\r\n\r\n",
        ]
        self._stop_timer()
        self._is_refused = True
        self.transport.write(b"".join([*head, body]))
        # Closing over what it still sends would reset the connection, and the client would never read why.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_S, self.transport.abort)

    def _give_time(self) -> None:
        """Start the clock anew: a large body that comes steadily may take longer than others."""
        if self._timer is not None:
            self._stop_timer()
            self._start_timer()

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self._request_s, self._is_late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
