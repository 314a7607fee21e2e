"""The lines of a batch: what a caller asks in one, and what is written for it.

Two forms are read: OpenAI's ``{"custom_id", "method", "url", "body"}`` and the short ``{"custom_id"?, "prompt", ...}``
with a request's own fields and defaults.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from farm.contracts import Request, parse_request
from farm.errors import (
    FarmError,
    InvalidRequest,
    JobCancelled,
    JobDead,
    JobExpired,
    JobFailed,
    JobNotFound,
    nearest,
)
from farm.openai_shapes import completion_body, error_shape, values_of_body
from farm.results import JobView

URL = "/v1/completions"
MOST_BYTES = 64 << 20
MOST_ID_CHARS = 512
OPENAI_FIELDS = ("custom_id", "method", "url", "body")
ID = "batch_req_"
DUPLICATE_ID = ID + "duplicate_"


@dataclass(frozen=True, slots=True)
class Line:
    """One line's request, or the error that its answer will be. ``model`` is as the caller wrote it."""

    number: int
    custom_id: str
    request: Request | None
    error: InvalidRequest | None = None
    model: str | None = None


def numbered_lines(file: BinaryIO, number: int = 0, most_bytes: int = MOST_BYTES) -> Iterator[tuple[int, bytes | None]]:
    """Lines that are not blank, by their numbers; None for one of more than ``most_bytes``, which is not kept.

    number: how many lines are before the file's place. Whenever a line is yielded, the place is right behind it.
    """
    while raw := file.readline(most_bytes):
        number += 1
        is_whole = len(raw) < most_bytes or raw.endswith(b"\n")
        while not raw.endswith(b"\n") and (more := file.readline(most_bytes)):
            raw = more
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if not is_whole:
            yield number, None
        elif raw.strip():
            yield number, raw


def parse_line(number: int, raw: bytes | None, defaults: Mapping[str, object], most_bytes: int = MOST_BYTES) -> Line:
    """Read one line; what is wrong with it becomes its ``error``. defaults: fields for lines that don't say.
    most_bytes: what a line may have; one that had more is given as None.

    A line without a custom_id gets one of its number and content.
    """
    custom_id = f"line-{number}-{hashlib.blake2b(raw or b'', digest_size=4).hexdigest()}"
    try:
        body = _object(raw, most_bytes)
        if (given := body.pop("custom_id", None)) is not None:
            if not isinstance(given, str) or not 0 < len(given) <= MOST_ID_CHARS:
                raise InvalidRequest("custom_id", f"must be text of 1 to {MOST_ID_CHARS} characters")
            custom_id = given
        request = parse_request(_openai_values(body, defaults) if "body" in body else _short_values(body, defaults))
    except InvalidRequest as error:
        return Line(number, custom_id, None, error)
    return Line(number, custom_id, request, model=request.model)


def peek(raw: bytes | None) -> tuple[str | None, str | None]:
    """A line's custom_id and model, without checking anything; None for what it does not say."""
    try:
        body = _object(raw, MOST_BYTES)
    except InvalidRequest:
        return None, None
    inner = body["body"] if isinstance(body.get("body"), dict) else body
    custom_id, model = body.get("custom_id"), inner.get("model") if isinstance(inner, dict) else None
    return custom_id if isinstance(custom_id, str) else None, model if isinstance(model, str) else None


def answer(line: Line, job: JobView) -> dict[str, Any]:
    """What is written for a line whose job succeeded."""
    response = {"status_code": 200, "request_id": job.id, "body": completion_body([job], line.model)}
    return {"id": ID + job.id, "custom_id": line.custom_id, "response": response, "error": None}


def refusal(line: Line, error: FarmError, *, job_id: str | None = None, prefix: str = ID) -> dict[str, Any]:
    """What is written for a line that got no completion."""
    body: dict[str, Any] = {"code": error.code, "message": f"line {line.number}: {error}", "line": line.number}
    body["retryable"] = is_retryable(error)
    if isinstance(error, InvalidRequest):
        body["param"] = error.field
    if job_id is not None:
        body["job_id"] = job_id
    return {"id": prefix + (job_id or uuid.uuid4().hex), "custom_id": line.custom_id, "response": None, "error": body}


def rejection(line: Line, error: FarmError, job_id: str) -> dict[str, Any]:
    """What a batch of the API writes for a line that the farm answered with an error: its answer, as over HTTP."""
    body = error_shape(error)
    body["message"] = f"line {line.number}: {body['message']}"
    response = {"status_code": error.http_status, "request_id": job_id, "body": {"error": body}}
    return {"id": ID + job_id, "custom_id": line.custom_id, "response": response, "error": None}


def is_retryable(error: FarmError) -> bool:
    """Whether the same line may fare better another time: neither it nor the model's word on it is at fault."""
    if isinstance(error, JobFailed):
        return error.job is not None and error.job.error is not None and error.job.error.retryable
    return error.retryable or isinstance(error, JobDead | JobExpired | JobCancelled | JobNotFound)


def _object(raw: bytes | None, most_bytes: int) -> dict[str, object]:
    if raw is None:
        raise InvalidRequest("line", f"is longer than {most_bytes:,} bytes; shorten it")
    try:
        body = json.loads(raw)
    except UnicodeDecodeError:
        raise InvalidRequest("line", "is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest("line", f"is not JSON: {error.msg} at column {error.colno}") from None
    except (RecursionError, ValueError):
        raise InvalidRequest("line", "is JSON that can't be read: nested too deep, or a number too long") from None
    if not isinstance(body, dict):
        raise InvalidRequest("line", "must be a JSON object, {...}")
    return body


def _openai_values(line: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    for name in line:
        if name not in OPENAI_FIELDS:
            raise InvalidRequest(name, f"is not a field of a batch line{nearest(name, OPENAI_FIELDS)}")
    if (method := line.get("method", "POST")) != "POST":
        raise InvalidRequest("method", f"{str(method)[:20]!r} is not supported; use POST")
    if (url := line.get("url", URL)) != URL:
        raise InvalidRequest("url", f"{str(url)[:60]!r} is not served; use {URL}")
    body = line["body"]
    if not isinstance(body, dict):
        raise InvalidRequest("body", "must be a JSON object, {...}")
    return values_of_body(body, defaults)


def _short_values(line: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    values = {**defaults, **line}
    if values.pop("n", None) not in (None, 1):
        raise InvalidRequest("n", "is not supported here; give each sample its own line")
    return values
