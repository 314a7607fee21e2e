"""A job as people see it, from what the server holds of it."""

from __future__ import annotations

import json
from typing import Any

from farm.contracts import JobState, Request
from farm.ledger.webhook_log import webhook_of
from farm.results import AttemptRecord, JobError, JobView, Timings, TokenLogprobs, Usage

MAX_TOKENS = int(Request.model_fields["max_tokens"].default)


def view_of(job_id: str, fields: dict[str, str], entries: list[str], past: list[str]) -> JobView:
    """A job by its hash, its tokens' entries and its past attempts."""
    request = json.loads(fields["request"])
    tokens = json.loads(f"[{','.join(entries)}]")  # one document: an eighth of the time of one each
    most_tokens = request.get("max_tokens", MAX_TOKENS)
    error = json.loads(fields["error"]) if fields.get("error") else None
    created, started, finished = (_seconds(fields.get(name)) for name in ("created", "started", "finished"))
    first = _seconds(fields.get("first_token"))
    created = created or 0.0
    return JobView(
        id=job_id,
        state=JobState(fields["state"]),
        model=fields["model"],
        priority=request.get("priority", "normal"),
        tenant=fields["tenant"],
        created_at=created,
        started_at=started,
        finished_at=finished,
        attempt=int(fields.get("attempt", 0)),
        strikes=int(fields.get("strikes", 0)),
        text="".join(token[1] for token in tokens) + fields.get("tail", ""),
        token_ids=[token[0] for token in tokens],
        finish_reason=fields.get("finish_reason"),
        usage=Usage(
            int(fields.get("prompt_tokens", 0)), len(tokens), int(fields.get("resumed", fields.get("base", 0)))
        ),
        timings=Timings(_since(created, started), _since(created, first), _since(created, finished)),
        worker=fields.get("worker"),
        model_fingerprint=fields.get("fingerprint_model"),
        error=JobError(error["code"], error["message"], error["retryable"]) if error else None,
        history=[AttemptRecord(**json.loads(record)) for record in past],
        metadata=request.get("metadata", {}),
        wants_token_ids=request.get("return_token_ids", False),
        logprobs=logprobs_of(tokens) if request.get("logprobs") is not None else None,
        webhook=webhook_of(fields),
        least_tokens=most_tokens if request.get("ignore_eos") else request.get("min_tokens", 0),
        most_tokens=most_tokens,
        losses=int(fields.get("losses", 0)),
        claimed_at=_seconds(fields.get("claimed")),
    )


def logprobs_of(tokens: list[list[Any]]) -> list[TokenLogprobs]:
    """Of those entries that came with them."""
    return [
        TokenLogprobs(token[0], token[1], token[2], [(top[0], top[1]) for top in token[3]])
        for token in tokens
        if len(token) > 2
    ]


def _seconds(milliseconds: str | None) -> float | None:
    return int(milliseconds) / 1000 if milliseconds else None


def _since(start: float, end: float | None) -> float | None:
    return None if end is None else round(end - start, 3)
