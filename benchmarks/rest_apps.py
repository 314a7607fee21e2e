"""What the REST API is compared with: the least that could answer, and what people usually write. For uvicorn to serve.

REST_BENCH_URL names the Redis server.
"""

from __future__ import annotations

import os
from typing import Any

import redis.asyncio
from celery import Celery
from fastapi import FastAPI
from pydantic import BaseModel

JSON = [(b"content-type", b"application/json"), (b"content-length", b"11")]
OK = b'{"ok":true}'
URL = os.environ.get("REST_BENCH_URL", "")


async def noop(scope: Any, receive: Any, send: Any) -> None:
    """A raw ASGI app that answers."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    await send({"type": "http.response.start", "status": 200, "headers": JSON})
    await send({"type": "http.response.body", "body": OK})


class Push:
    """A raw ASGI app that pushes the body on a Redis list, and answers."""

    def __init__(self) -> None:
        self._client = redis.asyncio.Redis.from_url(URL) if URL else None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        assert self._client is not None
        await self._client.lpush("bench", body)
        await send({"type": "http.response.start", "status": 202, "headers": JSON})
        await send({"type": "http.response.body", "body": OK})


class Prompt(BaseModel):
    """What a plain FastAPI app would take."""

    prompt: str
    max_tokens: int = 64


lpush = Push()
fast = FastAPI()
celery = Celery("bench", broker=URL, backend=URL, set_as_current=False)
celery.conf.task_ignore_result = True


@fast.get("/noop")
async def fast_noop() -> dict[str, bool]:
    """A FastAPI handler that does nothing."""
    return {"ok": True}


@fast.post("/jobs", status_code=202)
def send_task(body: Prompt) -> dict[str, str]:
    """FastAPI in front of Celery, as tutorials have it."""
    task = celery.send_task("farm.generate", kwargs=body.model_dump(), queue="bench")
    return {"id": task.id}


async def _lifespan(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
