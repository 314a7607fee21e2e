"""OpenAI's completions, in and out: their bodies as our requests, our jobs as their bodies.

Fields that the farm can't honour are refused, not dropped. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from farm.errors import FarmError, InvalidRequest
from farm.results import JobView, TokenLogprobs

OPENAI_DEFAULTS: Mapping[str, object] = {"max_tokens": 16, "temperature": 1.0}
IGNORED = ("user", "store", "service_tier")
# What each of these must be for us to do as told.
ONLY: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "stream": (False,),
    "stream_options": (),
    "suffix": ("",),
    "logit_bias": ({},),
}


def values_of_body(body: Mapping[str, object], defaults: Mapping[str, object] | None = None) -> dict[str, object]:
    """The fields of a Request from a completions body; null means the default, which is OpenAI's unless given.

    Raises InvalidRequest for what the farm does not do; the values themselves are checked by ``parse_request``.
    """
    values = {
        **OPENAI_DEFAULTS,
        **(defaults or {}),
        **{name: value for name, value in body.items() if value is not None},
    }
    for name in IGNORED:
        values.pop(name, None)
    for name, allowed in ONLY.items():
        if (value := values.pop(name, None)) is not None and value not in allowed:
            can_be = f"; leave it out or give {allowed[0]!r}" if allowed else "; leave it out"
            raise InvalidRequest(name, f"{str(value)[:60]} is not supported here{can_be}")
    if "prompt" in values:
        values["prompt"] = _one_prompt(values["prompt"])
    return values


def completion_body(
    jobs: Sequence[JobView], model: str | None = None, *, samples: int | None = None, echoes: Sequence[str] = ()
) -> dict[str, Any]:
    """A completion object with one choice per job that succeeded.

    model: how the caller named it. samples: choices of one prompt, which stand together; all unless given.
    echoes: the prompt of each choice, to stand before its text.
    """
    first = jobs[0]
    choices = [_choice(index, job) for index, job in enumerate(jobs)]
    for choice, echo in zip(choices, echoes, strict=False):
        choice["text"] = echo + choice["text"]
    return {
        "id": completion_id(first.id),
        "object": "text_completion",
        "created": int(first.created_at),
        "model": model or first.model,
        "choices": choices,
        "usage": usage_body(jobs, samples or len(jobs)),
    }


def completion_id(job_id: str) -> str:
    """A completion's id, from its first job's."""
    return f"cmpl-{job_id}"


def usage_body(jobs: Sequence[JobView], samples: int) -> dict[str, int]:
    """What the choices took together; a prompt counts once for all of its samples, which stand together."""
    prompt_tokens = sum(job.usage.prompt_tokens for job in jobs[::samples])
    completion_tokens = sum(job.usage.completion_tokens for job in jobs)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "resumed_tokens": sum(job.usage.resumed_tokens for job in jobs),
    }


def logprobs_body(tokens: Sequence[TokenLogprobs], at: int = 0) -> dict[str, Any]:
    """The logprobs of a choice, or of a part that begins ``at`` so many characters.

    Alternatives are named by their ids, as ``token_id:17``: not all are text.
    """
    offsets = []
    for token in tokens:
        offsets.append(at)
        at += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{f"token_id:{token_id}": value for token_id, value in token.top} for token in tokens],
        "text_offset": offsets,
    }


def error_shape(error: FarmError) -> dict[str, Any]:
    """An error as OpenAI's clients know it."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = "server_error" if error.http_status >= 500 else kinds.get(error.http_status, "invalid_request_error")
    param = error.field if isinstance(error, InvalidRequest) else None
    return {"message": str(error), "type": kind, "param": param, "code": error.code}


def _choice(index: int, job: JobView) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": index,
        "text": job.text,
        "finish_reason": job.finish_reason,
        "logprobs": None if job.logprobs is None else logprobs_body(job.logprobs),
    }
    if job.wants_token_ids:
        choice["token_ids"] = job.token_ids
    return choice


def _one_prompt(prompt: object) -> object:
    """The prompt, out of a list of one."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            raise InvalidRequest("prompt", f"holds {len(prompt)} prompts; give each a request of its own")
        return prompt[0]
    return prompt
