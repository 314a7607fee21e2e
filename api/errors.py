"""Errors as HTTP answers: ``{"error": {message, type, param, code}}``, the shape that OpenAI's clients know.

No answer names the farm's inner addresses, and none repeats a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from starlette.exceptions import HTTPException

from api.answers import Answer, Header, encode
from farm.errors import (
    DeadlineUnmeetable,
    FarmError,
    IdempotencyConflict,
    InvalidRequest,
    JobNotSucceeded,
    QueueFull,
    ServerFull,
    ServerUnreachable,
    SettingsError,
    TooManyRequests,
)

RETRY_AFTER_S = 1
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
PARAMS: dict[type[FarmError], str] = {DeadlineUnmeetable: "deadline_s", IdempotencyConflict: "Idempotency-Key"}
# What a caller need not know of these: where the server is and what it said.
PLAIN: dict[type[FarmError], str] = {
    ServerUnreachable: "the farm's server does not answer; nothing is lost, try again",
    ServerFull: "the farm's server is nearly out of memory and takes no new jobs; try again later",
    SettingsError: "the farm is not set up for this; its log says more",
}


class KeyRefused(FarmError):
    """There is no key, or none that is known."""

    code = "invalid_api_key"
    http_status = 401


class ScopeMissing(FarmError):
    """The key does not allow this."""

    code = "insufficient_scope"
    http_status = 403


class HostRefused(FarmError):
    """A request without a key was meant for another host: a web page may be behind it."""

    code = "host_refused"
    http_status = 403


class BodyTooLarge(InvalidRequest):
    """The body is larger than ``api.max_body_bytes``."""

    code = "body_too_large"
    http_status = 413


class FileTooLarge(InvalidRequest):
    """The file is larger than ``files.max_bytes``."""

    code = "file_too_large"
    http_status = 413


class NotJson(InvalidRequest):
    """The body is no JSON document that this farm reads."""

    code = "invalid_json"


class MediaRefused(FarmError):
    """The body does not say that it is JSON."""

    code = "unsupported_media_type"
    http_status = 415


class ChatNotServed(FarmError):
    """Chats are asked for, which a Bloom knows nothing of."""

    code = "chat_not_served"
    http_status = 404


class StreamsFull(FarmError):
    """This process holds as many streams open as it may."""

    code = "too_many_streams"
    retryable = True
    http_status = 503


class ServerStopping(FarmError):
    """This process ends before the answer is there."""

    code = "server_stopping"
    retryable = True
    http_status = 503


class Gone(Exception):
    """The client went away; nobody waits for an answer."""


def limit_headers(name: str, limit: float, remaining: float, reset_s: float) -> list[Header]:
    """What a tenant has left of one of its limits, as OpenAI's clients read it."""
    kind = name.replace("_", "-").encode()
    return [
        (b"x-ratelimit-limit-" + kind, b"%d" % limit),
        (b"x-ratelimit-remaining-" + kind, b"%d" % remaining),
        (b"x-ratelimit-reset-" + kind, b"%ds" % math.ceil(reset_s)),
    ]


def answer_to(error: FarmError) -> Answer:
    """The answer that an error means."""
    status = error.http_status
    message = next((text for kind, text in PLAIN.items() if isinstance(error, kind)), None) or str(error)
    headers: list[Header] = []
    if error.retryable:
        wait_s = error.retry_after_s if isinstance(error, TooManyRequests | QueueFull) else RETRY_AFTER_S
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(wait_s))))
    if isinstance(error, TooManyRequests):
        headers += limit_headers(error.limit_name, error.limit, error.remaining, error.reset_s)
    if isinstance(error, JobNotSucceeded):
        headers.append(
            (b"x-should-retry", b"false")
        )  # OpenAI's clients ask again after most errors; this job has ended
    if status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="farm"'))
    param = error.field if isinstance(error, InvalidRequest) else PARAMS.get(type(error))
    return _answer(status, message, error.code, param, headers)


def answer_to_http(error: HTTPException, methods: Collection[str]) -> Answer:
    """The answer for a path or method that there is not. methods: those that the path knows."""
    if error.status_code == 405:
        known = ", ".join(sorted(methods))
        return _answer(405, f"this path knows only {known}", "method_not_allowed", None, [(b"allow", known.encode())])
    return _answer(404, "there is nothing at this path; /docs shows what there is", "not_found", None)


def answer_to_bug() -> Answer:
    """The answer for what nobody foresaw. The log has the reason under the request's id."""
    return _answer(500, "this is a defect of the farm; its log says more under x-request-id", "internal_error", None)


def error_body(message: str, kind: str, code: str, param: str | None = None) -> bytes:
    """An error's JSON."""
    return encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def _answer(status: int, message: str, code: str, param: str | None, headers: list[Header] | None = None) -> Answer:
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return Answer(error_body(message, kind, code, param), status, headers)
