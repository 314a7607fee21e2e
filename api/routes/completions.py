"""``/v1/completions`` and ``/v1/models``, as OpenAI's clients expect them.

Each choice is a job. Without an idempotency key nobody can ask for it again, so it is cancelled when the client leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from api.admission import Admission
from api.answers import Answer, encode
from api.auth import Guard
from api.completion_stream import CompletionStream, Frame
from api.completions import Ask, ask_of
from api.errors import ChatNotServed, Gone, ServerStopping
from api.newsroom import Listener
from api.requests import MAX_WAIT_S, Call
from api.service import Service
from api.streaming import until_left
from farm.contracts import JobState, created_at
from farm.errors import InvalidRequest, ModelNotFound
from farm.flow import not_succeeded
from farm.ledger.overview import overview
from farm.ledger.records import Submission
from farm.openai_shapes import completion_body
from farm.prompts import decode_tokens
from farm.results import JobView


class CompletionRoutes:
    """The endpoints. Each raises what becomes an answer."""

    def __init__(self, service: Service, guard: Guard) -> None:
        self._service = service
        self._guard = guard
        self._admission = Admission(service)

    async def chat(self, call: Call) -> Response:
        """Say where completions are. Always raises."""
        await self._guard.admit(call, "submit")
        raise ChatNotServed(
            "a Bloom has no chat template, so chats are not served; put the conversation into one prompt and send that "
            "to /v1/completions"
        )

    async def complete(self, call: Call) -> Response:
        """Generate for one prompt or several, ``n`` times each; whole, or as a stream."""
        tenant = await self._guard.admit(call, "submit")
        call.query()
        key = call.idempotency_key()
        ask = ask_of(await call.json())
        submissions = await self._admission.choices(ask.requests, ask.samples, tenant, key)
        echoes = await self._service.call(self._echoes, ask) if ask.is_echoed else []
        try:
            await self._submit(submissions)
            if ask.is_streamed:
                return await self._stream(ask, submissions, echoes, has_key=key is not None)
            call.note_waiting()
            jobs = await self._wait(call, submissions)
        except BaseException:
            if key is None:
                await asyncio.shield(self._service.cancel_quietly([one.id for one in submissions]))
            raise
        body = completion_body(jobs, ask.requests[0].model, samples=ask.samples, echoes=echoes)
        return Answer(encode(body))

    async def models(self, call: Call) -> Answer:
        """All models that have been served here."""
        await self._guard.admit(call, "read")
        call.query()
        return Answer(encode({"object": "list", "data": await self._service.call(self._models)}))

    async def model(self, call: Call) -> Answer:
        """One of them."""
        await self._guard.admit(call, "read")
        call.query()
        name = call.path_params["model"]
        for model in await self._service.call(self._models):
            if model["id"] == name:
                return Answer(encode(model))
        raise ModelNotFound(f"model {name[:128]!r} is not served here; /v1/models lists those that are")

    async def _submit(self, submissions: Sequence[Submission]) -> None:
        if len(submissions) == 1:
            await self._service.submit(submissions[0])
        else:
            await self._service.submit_list(submissions)

    async def _stream(
        self, ask: Ask, submissions: Sequence[Submission], echoes: Sequence[str], *, has_key: bool
    ) -> CompletionStream:
        first = submissions[0]
        # An id made from a key holds no time.
        created = created_at(first.id) or (await self._service.view(first.id, first.tenant)).created_at
        entering = (self._service.news.enter(submission.id, 0) for submission in submissions)
        entered = await asyncio.gather(*entering, return_exceptions=True)
        listeners = [one for one in entered if isinstance(one, Listener)]
        for failure in entered:
            if isinstance(failure, BaseException):
                for listener in listeners:
                    self._service.news.exit(listener)
                raise failure
        frame = Frame(int(created), ask.requests[0].model or first.model, ask.samples, ask.has_usage, echoes)
        return CompletionStream(self._service, listeners, submissions, frame, has_key=has_key)

    async def _wait(self, call: Call, submissions: Sequence[Submission]) -> list[JobView]:
        """The jobs once all have succeeded. Raises what another end means; Gone when the client is."""
        leaving = asyncio.create_task(until_left(call.receive))
        ends = [asyncio.create_task(self._end_of(submission.id)) for submission in submissions]
        everything = asyncio.gather(*ends)
        try:
            waited: set[asyncio.Future[Any]] = {leaving, everything}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if not everything.done():
                raise Gone
            jobs = everything.result()
        finally:
            for task in (leaving, *ends):
                task.cancel()
            await asyncio.gather(leaving, *ends, return_exceptions=True)
        return list(jobs)

    async def _end_of(self, job_id: str) -> JobView:
        while True:
            view = await self._service.ended(job_id, MAX_WAIT_S)
            if view.state is JobState.SUCCEEDED:
                return view
            if view.state.is_terminal:
                raise not_succeeded(view)
            if self._service.news.is_stopping:
                raise ServerStopping("this server stops; ask again")

    # On a thread.

    def _echoes(self, ask: Ask) -> list[str]:
        """The prompt of each choice as text."""
        return [self._text_of(request.prompt, request.model) for request in ask.requests]

    def _text_of(self, prompt: str | list[int], model: str | None) -> str:
        if isinstance(prompt, str):
            return prompt
        facts = self._service.checks.facts(model)
        text = decode_tokens(prompt, facts.tokenizer) if facts is not None else None
        if text is None:
            raise InvalidRequest("echo", "the model's tokenizer is not at hand here; send the prompt as text")
        return text

    def _models(self) -> list[dict[str, object]]:
        facts = self._service.jobs.models()
        serving = {load.model for load in overview(self._service.jobs).models if load.slots}
        return [
            {
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": "bloomfarm",
                "context": facts[name].context if name in facts else None,
                "status": "serving" if name in serving else "waiting",
            }
            for name in sorted({*facts, self._service.settings.model.name})
        ]
