"""What the worker and its engine process say to each other: JSON objects, one per pipe message.

To the engine: ``Add`` and ``Cancel``. From the engine: ``Ready`` or ``Refused`` once, then one ``Report`` per step, or
per idle beat. This module is plain data: no torch, no Redis, no Celery.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "cancelled", "expired"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to pick tokens. The defaults are greedy; ``farm.contracts.Request`` documents and checks each field."""

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Add:
    """Generate for one job. ``resume`` holds the tokens that earlier attempts checkpointed; ``deadline_s`` is from now."""

    id: str
    prompt: str | list[int]
    params: SamplingParams
    resume: list[int] = field(default_factory=list)
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Forget a job at the next step; nothing more is said about it."""

    id: str


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token and the text that became certain with it (often its own, "" inside a character).

    ``logprob`` is of the chosen token under the model's raw distribution; ``top`` lists the likeliest [token id, logprob]
    pairs. Both only when the request asked for logprobs.
    """

    id: int
    text: str
    logprob: float | None = None
    top: list[tuple[int, float]] | None = None


@dataclass(frozen=True, slots=True)
class Admitted:
    """The prompt was tokenized and is being computed."""

    id: str
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Emitted:
    """New tokens of one job, in order."""

    id: str
    tokens: list[Token]


@dataclass(frozen=True, slots=True)
class Finished:
    """The job's last word. ``tail`` is text held back until now (it might have become a stop string)."""

    id: str
    reason: FinishReason
    tail: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """The job can't be generated; retryable when another attempt could go better."""

    id: str
    code: str
    message: str
    retryable: bool = False


Event = Admitted | Emitted | Finished | Failed


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded. ``context`` and ``kv_tokens`` count tokens; ``tokenizer`` is the path of tokenizer.json."""

    slots: int
    context: int
    kv_tokens: int
    vocab: int
    fingerprint: str
    load_s: float
    tokenizer: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The model can't be served, and trying again won't help."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Report:
    """What one step did; with no events it is a beat that says the engine is alive."""

    steps: int
    running: int
    waiting: int
    events: list[Event]


Command = Add | Cancel
Message = Ready | Refused | Report

_TYPES: dict[str, Any] = {t.__name__: t for t in (Add, Cancel, Admitted, Emitted, Finished, Failed, Ready, Refused)}


def encode(message: Command | Message) -> bytes:
    """One message as JSON, tagged with its type's name."""
    body = asdict(message)
    if isinstance(message, Report):
        body["events"] = [{"t": type(event).__name__, **asdict(event)} for event in message.events]
    return json.dumps({"t": type(message).__name__, **body}, separators=(",", ":")).encode()


def decode(data: bytes) -> Command | Message:
    """The message that ``encode`` wrote."""
    body = json.loads(data)
    if body["t"] == "Report":
        del body["t"]
        return Report(**{**body, "events": [_build(event) for event in body["events"]]})
    message: Command | Message = _build(body)
    return message


def _build(body: dict[str, Any]) -> Any:
    kind = body.pop("t")
    if kind == "Add":
        params = body["params"]
        for name in ("stop", "stop_token_ids"):
            params[name] = tuple(params[name])
        body["params"] = SamplingParams(**params)
    elif kind == "Emitted":
        body["tokens"] = [Token(**token) for token in body["tokens"]]
    return _TYPES[kind](**body)
