"""``/v1/jobs/{id}/events``: a job's text as it is generated, as server-sent events.

    id: 12                      how many tokens the client has once it has read this event
    event: tokens
    data: {"index":12,"text":" a goat"}

    id: 64.end
    event: end
    data: {"index":64,"text":".","state":"succeeded",…}    text: what came after the last token

A client that was cut off sends the last id that it got, as browsers do by themselves, and gets what follows: the ids
count tokens in the ledger, so it does not matter which process it asks or which worker generates. ``resume`` says that
this server stops and another one goes on. A job whose model was changed begins anew; whoever has read some of it gets
``error`` with the code ``answer_restarted``, and its ids are like ``12r1`` from then on.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response

from api.answers import Answer, encode
from api.auth import Guard
from api.errors import answer_to
from api.newsroom import Listener
from api.requests import Call
from api.service import Service
from api.streaming import HEARTBEAT, Stream
from farm.errors import FarmError, InvalidRequest
from farm.ledger.records import Piece
from farm.results import JobView

RETRY_MS = 1_000
OPENING = b"retry: %d\n\n" % RETRY_MS
_LAST_ID = re.compile(r"(\d{1,9})(?:r(\d{1,9}))?(\.end)?\Z", re.ASCII)
_AT_END = ("id", "state", "finish_reason", "usage", "error")


class EventRoutes:
    """The endpoint."""

    def __init__(self, service: Service, guard: Guard) -> None:
        self._service = service
        self._guard = guard

    async def follow(self, call: Call) -> Response:
        """A job's events from ``Last-Event-ID`` on, or from its first token."""
        tenant = await self._guard.admit(call, "read")
        call.query()
        start, restarts, has_end = last_id(call.header(b"last-event-id"))
        view = await self._service.view(call.path_params["job_id"], tenant)
        if has_end and view.state.is_terminal:
            return Answer(b"", 204)  # an EventSource that gets this asks no more
        listener = await self._service.news.enter(view.id, start, restarts)
        return EventStream(self._service, listener, view, start, restarts)


class EventStream(Stream):
    """The events of one job, to one client."""

    def __init__(self, service: Service, listener: Listener, view: JobView, start: int, restarts: int) -> None:
        super().__init__(service, [listener])
        self._listener = listener
        self._view = view
        self._index = start
        self._restarts = restarts

    async def chunks(self) -> AsyncIterator[bytes]:
        """What is new, until the end."""
        yield OPENING
        heartbeat_s = self._service.settings.api.heartbeat_s
        while True:
            heard = await self._listener.next(heartbeat_s)
            for news in heard:
                if isinstance(news, FarmError):
                    yield self._failed(news)
                    return
                assert isinstance(news, Piece)
                if news.state.is_terminal:
                    yield await self._ended(news)
                    return
                self._note(news)
                yield self._tokens(news)
            if self._listener.is_over:
                if self._service.news.is_stopping:
                    yield event("resume", None, {"last_event_id": self._id, "reason": "this server stops"})
                return
            if not heard:
                yield HEARTBEAT

    def _note(self, piece: Piece) -> None:
        self._index, self._restarts = piece.start + len(piece.tokens), piece.restarts

    @property
    def _id(self) -> str:
        return f"{self._index}r{self._restarts}" if self._restarts else str(self._index)

    def _tokens(self, piece: Piece) -> bytes:
        return event("tokens", self._id, self._data(piece, ""))

    async def _ended(self, piece: Piece) -> bytes:
        """What came last, and how the job ended, in one event: the client has both or neither."""
        try:
            job = (await self._service.view(self._view.id, self._view.tenant)).to_dict()
        except FarmError as error:
            return self._failed(error)
        self._note(piece)
        return event("end", f"{self._id}.end", self._data(piece, piece.tail) | {name: job[name] for name in _AT_END})

    def _failed(self, error: FarmError) -> bytes:
        """Nothing more can be said for now; the job may well go on."""
        answer = answer_to(error)
        return b"event: error\ndata: " + bytes(answer.body) + b"\n\n"

    def _data(self, piece: Piece, tail: str) -> dict[str, Any]:
        data: dict[str, Any] = {"index": self._index, "text": "".join(text for _, text in piece.tokens) + tail}
        if self._view.wants_token_ids:
            data["token_ids"] = [token for token, _ in piece.tokens]
        return data


def last_id(text: str | None) -> tuple[int, int, bool]:
    """The token index in a Last-Event-ID, how often the job had begun anew, and whether the client has seen the end.

    Raises InvalidRequest.
    """
    if text is None:
        return 0, 0, False
    if (found := _LAST_ID.match(text)) is None:
        raise InvalidRequest("Last-Event-ID", f"{text[:60]!r} is no id of an event here; send the last one you got")
    return int(found[1]), int(found[2] or 0), found[3] is not None


def event(name: str, event_id: str | None, data: dict[str, Any]) -> bytes:
    """One event. JSON has no line breaks of its own, so the data is one line."""
    head = f"id: {event_id}\nevent: {name}\ndata: " if event_id is not None else f"event: {name}\ndata: "
    return head.encode() + encode(data) + b"\n\n"
