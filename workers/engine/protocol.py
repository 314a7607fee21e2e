"""What the worker and its engine process say to each other: one message per pipe packet.

To the engine: ``Add``, ``Cancel`` and ``Halt``. From the engine: ``Ready`` or ``Refused`` once, then ``Report``s of
what the steps did, one at least every ``BEAT_S``, and ``Halted``. This module is plain data: no
torch, no Redis.

On the wire a message is a JSON array: its type's name, then its fields in order, so that a step with 32 tokens costs
tens of microseconds. Both ends are of one release: there is no schema to grow.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "cancelled", "expired"]

BEAT_S = 0.5
"""The longest silence of an engine that is neither loading nor inside a step, in seconds."""


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
    """Generate for one job. ``resume`` holds the tokens that earlier attempts checkpointed; ``deadline_s`` is from now.
    ``was_computed``: an earlier attempt has computed the prompt, so that to do so again is the price of its end.

    Only jobs of one ``scope`` share what was computed for equal beginnings of their prompts.
    Adding an id that is still being generated starts it anew.
    """

    id: str
    prompt: str | list[int]
    params: SamplingParams
    resume: list[int] = field(default_factory=list)
    deadline_s: float | None = None
    scope: str = ""
    was_computed: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """Forget a job at the next step; nothing more is said about it."""

    id: str


@dataclass(frozen=True, slots=True)
class Halt:
    """Report every token that was computed, forget all jobs, and say ``Halted``."""


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token and the text that became certain with it (often its own, "" inside a character).

    ``logprob`` is of the chosen token under the model's raw distribution; ``top`` lists the likeliest tokens as
    (token id, logprob). Both only when the request asked for logprobs.
    """

    id: int
    text: str
    logprob: float | None = None
    top: list[tuple[int, float]] | None = None


@dataclass(frozen=True, slots=True)
class Admitted:
    """The prompt was tokenized and accepted; it is computed as soon as a slot is free. Said once, before any token."""

    id: str
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Emitted:
    """New tokens of one job, in order; never those of ``Add.resume``, nor the token that ended the text."""

    id: str
    tokens: list[Token]


@dataclass(frozen=True, slots=True)
class Finished:
    """The job's last word. ``tail`` is text held back until now (it might have become a stop string).

    ``decode_s`` is the time from its first new token to its last one.
    """

    id: str
    reason: FinishReason
    tail: str = ""
    decode_s: float = field(default=0.0, compare=False)


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
    """The model is loaded. ``context`` and ``kv_tokens`` count tokens; ``tokenizer`` is the path of tokenizer.json.

    The synthetic engine has no tokenizer: its path is empty. ``kernels`` says for people what computes, and in how many
    stages; ``dtype`` in which precision.
    """

    slots: int
    context: int
    kv_tokens: int
    vocab: int
    fingerprint: str
    load_s: float
    tokenizer: str
    kernels: str = ""
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """The model can't be served, and trying again won't help."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Halted:
    """The answer to ``Halt``: what was computed before it was reported before this."""


@dataclass(frozen=True, slots=True)
class Stats:
    """The KV cache's use now, in tokens, and what has happened since the engine started.

    ``preemptions`` counts sequences that gave their memory back, ``out_of_memory`` steps that found none to compute in,
    ``cached_prompt_tokens`` prompt tokens that were not computed because another prompt began with them.
    ``prompt_tokens``, ``resumed_tokens`` and ``recomputed_tokens`` were prefilled, ``generated_tokens`` sampled; of
    these, ``ending_tokens`` ended a text: see ``workers.engine.tally``. The last four are counts by bucket, and sums,
    of decode steps by their rows and of all steps by their seconds.
    """

    kv_tokens: int = 0
    preemptions: int = 0
    out_of_memory: int = 0
    cached_prompt_tokens: int = 0
    prompt_tokens: int = 0
    resumed_tokens: int = 0
    recomputed_tokens: int = 0
    generated_tokens: int = 0
    ending_tokens: int = 0
    batch_sizes: tuple[int, ...] = ()
    decoded_rows: float = 0
    step_seconds: tuple[int, ...] = ()
    computing_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """What the steps did; with no events it is a beat that says the engine is alive.

    Tokens may be told some steps after they were sampled, and ``stats`` counts them when they are.
    """

    steps: int
    running: int
    waiting: int
    events: list[Event]
    stats: Stats = field(default_factory=Stats)


Command = Add | Cancel | Halt
Message = Ready | Refused | Report | Halted

_FLAT: dict[str, Any] = {t.__name__: t for t in (Cancel, Halt, Admitted, Finished, Failed, Ready, Refused, Halted)}
_FIELDS: dict[type, tuple[str, ...]] = {t: t.__match_args__ for t in (*_FLAT.values(), SamplingParams, Stats)}
_dumps: Callable[[Any], str] = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def encode(message: Command | Message) -> bytes:
    """One message as JSON, tagged with its type's name."""
    return _dumps(_pack(message)).encode()


def decode(data: bytes) -> Command | Message:
    """The message that ``encode`` wrote."""
    message: Command | Message = _unpack(json.loads(data))
    return message


def _pack(message: Command | Message | Event) -> list[Any]:
    if isinstance(message, Emitted):
        tokens = [(t.id, t.text) if t.logprob is None else (t.id, t.text, t.logprob, t.top) for t in message.tokens]
        return ["Emitted", message.id, tokens]
    if isinstance(message, Report):
        events = [_pack(event) for event in message.events]
        return ["Report", message.steps, message.running, message.waiting, events, _values(message.stats)]
    if isinstance(message, Add):
        params = _values(message.params)
        rest = (message.resume, message.deadline_s, message.scope, message.was_computed)
        return ["Add", message.id, message.prompt, params, *rest]
    return [type(message).__name__, *_values(message)]


def _values(flat: Any) -> list[Any]:
    return [getattr(flat, name) for name in _FIELDS[type(flat)]]


def _unpack(body: list[Any]) -> Any:
    kind, *values = body
    if kind == "Emitted":
        return Emitted(values[0], [_token(*token) for token in values[1]])
    if kind == "Report":
        events, stats = map(_unpack, values[3]), (tuple(v) if isinstance(v, list) else v for v in values[4])
        return Report(values[0], values[1], values[2], [*events], _stats(*stats))
    if kind == "Add":
        params = dict(zip(_FIELDS[SamplingParams], values[2], strict=True))
        params["stop"], params["stop_token_ids"] = tuple(params["stop"]), tuple(params["stop_token_ids"])
        return Add(values[0], values[1], SamplingParams(**params), *values[3:])
    return _FLAT[kind](*values)


def _stats(*values: Any) -> Stats:
    return Stats(*values)


def _token(id: int, text: str, logprob: float | None = None, top: list[list[Any]] | None = None) -> Token:
    return Token(id, text, logprob, None if top is None else [(token, value) for token, value in top])
