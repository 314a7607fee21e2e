"""A completion as it is generated: OpenAI's chunks over server-sent events, the choices mingled as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from api.answers import encode
from api.errors import ServerStopping, answer_to
from api.newsroom import Listener
from api.service import Service
from api.streaming import HEARTBEAT, Stream
from farm.contracts import JobState
from farm.errors import FarmError
from farm.flow import not_succeeded
from farm.ledger.records import Piece, Submission
from farm.openai_shapes import completion_id, logprobs_body, usage_body
from farm.results import JobView

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Frame:
    """What all chunks of one answer share. ``model`` is the caller's name for it."""

    created: int
    model: str
    samples: int
    has_usage: bool
    echoes: Sequence[str]


class CompletionStream(Stream):
    """The chunks of one answer. Jobs that nobody will ask for again end with it: ``has_key`` says that somebody may."""

    def __init__(
        self,
        service: Service,
        listeners: Sequence[Listener],
        submissions: Sequence[Submission],
        frame: Frame,
        *,
        has_key: bool,
    ) -> None:
        super().__init__(service, listeners)
        self._submissions = submissions
        self._frame = frame
        self._has_key = has_key
        self._ended: dict[int, JobView] = {}

    async def chunks(self) -> AsyncIterator[bytes]:
        """Each choice's text as it comes, then what all took if that was asked for, then [DONE]; or an error."""
        for index, echo in enumerate(self._frame.echoes):
            yield self._chunk(index, echo)
        try:
            async for chunk in merged([self._choice(index) for index in range(len(self._submissions))]):
                yield chunk
        except FarmError as error:
            yield b"data: " + bytes(answer_to(error).body) + b"\n\n"
            return
        if len(self._ended) < len(self._submissions):
            return  # the client is gone
        if self._frame.has_usage:
            jobs = [self._ended[index] for index in range(len(self._submissions))]
            yield self._event({"choices": [], "usage": usage_body(jobs, self._frame.samples)})
        yield DONE

    async def end(self) -> None:
        """Cancel what nobody will read."""
        left = [one.id for index, one in enumerate(self._submissions) if index not in self._ended]
        if left and not self._has_key:
            await self._service.cancel_quietly(left)

    async def _choice(self, index: int) -> AsyncIterator[bytes]:
        """One choice's chunks. Raises what its job's end means, or ServerStopping."""
        listener, at = self._listeners[index], 0
        if self._frame.echoes:
            at = len(self._frame.echoes[index])
        while True:
            heard = await listener.next(self._service.settings.api.heartbeat_s)
            for news in heard:
                if isinstance(news, FarmError):
                    raise news
                assert isinstance(news, Piece)
                if news.state.is_terminal:
                    view = await self._service.view(self._submissions[index].id, self._submissions[index].tenant)
                    if view.state is not JobState.SUCCEEDED:
                        raise not_succeeded(view)
                    self._ended[index] = view
                    yield self._chunk(index, _text(news) + news.tail, news, at, view.finish_reason)
                    return
                yield self._chunk(index, _text(news), news, at)
                at += len(_text(news))
            if listener.is_over:
                if self._service.news.is_stopping:
                    raise ServerStopping("this server stops; ask again")
                return
            if not heard:
                yield HEARTBEAT

    def _chunk(
        self, index: int, text: str, piece: Piece | None = None, at: int = 0, finish_reason: str | None = None
    ) -> bytes:
        logprobs = logprobs_body(piece.logprobs, at) if piece is not None and piece.logprobs else None
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._event({"choices": [choice], **({"usage": None} if self._frame.has_usage else {})})

    def _event(self, body: dict[str, Any]) -> bytes:
        head = {
            "id": completion_id(self._submissions[0].id),
            "object": "text_completion",
            "created": self._frame.created,
            "model": self._frame.model,
        }
        return b"data: " + encode({**head, **body}) + b"\n\n"


async def merged(sources: Sequence[AsyncIterator[bytes]]) -> AsyncIterator[bytes]:
    """What several sources yield, as it comes. Raises what the first of them raises; none runs on after that."""
    if len(sources) == 1:
        async for chunk in sources[0]:
            yield chunk
        return
    # A place for each, so that a slow client holds all of them up and nothing piles up here.
    arrived: asyncio.Queue[bytes] = asyncio.Queue(len(sources))

    async def drain(source: AsyncIterator[bytes]) -> None:
        async for chunk in source:
            await arrived.put(chunk)

    tasks = {asyncio.create_task(drain(source)) for source in sources}
    try:
        running = set(tasks)
        while running or not arrived.empty():
            coming = asyncio.create_task(arrived.get())
            done, _ = await asyncio.wait({coming, *running}, return_when=asyncio.FIRST_COMPLETED)
            if coming in done:
                yield coming.result()
            else:
                coming.cancel()
            for task in done & running:
                task.result()
            running -= done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _text(piece: Piece) -> str:
    return "".join(text for _, text in piece.tokens)
