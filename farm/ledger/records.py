"""What goes into the ledger and comes out of it: submissions, facts of models, tokens. Plain data; knows no server."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from json.encoder import encode_basestring

from farm.contracts import JobState, Request, created_at
from farm.results import TokenLogprobs

CHARS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Submission:
    """A checked request and its place. ``plain`` holds the headers of a plain Celery message, as JSON.

    part_of: what else must be the same for a repetition to be one, such as the length of its list.
    """

    id: str
    request: Request
    model: str
    tenant: str
    plain: str = ""
    part_of: str = ""

    @property
    def is_keyed(self) -> bool:
        """Whether its id was not made for it alone: the job may have been there before."""
        return created_at(self.id) is None

    @property
    def cost(self) -> int:
        """Tokens to charge its tenant until the true number is known."""
        prompt = self.request.prompt
        return self.request.max_tokens + (
            len(prompt) if isinstance(prompt, list) else len(prompt) // CHARS_PER_TOKEN + 1
        )


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a worker that serves a model said of it. ``tokenizer`` is a path that may exist on this machine."""

    name: str
    context: int
    vocab: int
    fingerprint: str
    tokenizer: str


@dataclass(frozen=True, slots=True)
class Piece:
    """What a job's stream read: entries from ``start`` on, and the state at that moment."""

    state: JobState
    start: int
    tokens: list[tuple[int, str]]
    tail: str
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of the same tokens, if the request asked for them."""
    restarts: int = 0
    """How often the job began anew; tokens read before that are void."""


def entry(token_id: int, text: str, logprob: float | None, top: list[tuple[int, float]] | None) -> str:
    """One generated token as the ledger keeps it."""
    if logprob is None:
        # For each token, so without the time of an encoder for all there is.
        return f"[{token_id},{encode_basestring(text)}]"
    return json.dumps([token_id, text, logprob, top or []], separators=(",", ":"), ensure_ascii=False)
