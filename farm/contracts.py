"""What callers send: a request and its rules, the names in it, and the states that a job goes through.

What they get back is in ``farm.results``. It knows neither Redis nor Celery nor any model.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeGuard, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from farm.egress import MOST_CHARS, parse_target
from farm.errors import InvalidRequest, nearest

Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
Text = Annotated[str, Field(max_length=512)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]

MAX_STOPS = 4
MAX_METADATA = 16
MAX_PROMPT_CHARS = 4_000_000
SAFE_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
HALF_PAIR = "holds half a surrogate pair, which is no text; repair it"
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
_WANTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a string",
    "list_type": "a list",
    "dict_type": "pairs of strings",
}


class JobState(StrEnum):
    """Where a job is. Users see ``dispatched`` as ``queued``: its message is out, nobody has claimed it yet."""

    QUEUED = "queued"
    DISPATCHED = "dispatched"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DEAD = "dead"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL_STATES


TERMINAL_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED, JobState.DEAD})


class Request(BaseModel):
    """What to generate, and how. Raises ``InvalidRequest`` through ``parse_request``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    prompt: str | list[TokenId]
    """Text, or token ids."""
    model: str | None = None
    """A model's name or id; the farm's default when left out."""
    max_tokens: int = Field(64, ge=1, le=1_000_000)
    """How many tokens to generate at the most."""
    min_tokens: int = Field(0, ge=0, le=1_000_000)
    """How many tokens to generate before a stop counts."""
    temperature: float = Field(0.0, ge=0, le=100, allow_inf_nan=False)
    """0 takes the likeliest token each time; 1 samples from the model's own distribution."""
    top_k: int = Field(0, ge=0, lt=2**31)
    """Sample among the k likeliest tokens; 0 means all."""
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    """Sample among the fewest tokens whose probabilities reach this sum."""
    repetition_penalty: float = Field(1.0, gt=0, le=100, allow_inf_nan=False)
    """Divides the logits of tokens already in prompt or output; 1 is off."""
    presence_penalty: float = Field(0.0, ge=-2, le=2, allow_inf_nan=False)
    """Taken off the logits of tokens already generated, once."""
    frequency_penalty: float = Field(0.0, ge=-2, le=2, allow_inf_nan=False)
    """Taken off the logits of tokens already generated, once for each time."""
    seed: int | None = Field(None, ge=0, lt=2**63)
    """Makes sampling repeatable; left out, it follows from the job's id."""
    stop: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(default_factory=list, max_length=MAX_STOPS)
    """Strings that end the text, and are not part of it."""
    stop_token_ids: list[TokenId] = Field(default_factory=list, max_length=64)
    """Tokens that end the text, and are not part of it."""
    logprobs: int | None = Field(None, ge=0, le=20)
    """Return each token's log probability and this many of the likeliest alternatives."""
    ignore_eos: bool = False
    """Go on to max_tokens even if the model ends its text."""
    return_token_ids: bool = False
    """Return the generated token ids beside the text."""
    priority: Priority = "normal"
    """high goes before normal, normal before low."""
    deadline_s: float | None = Field(None, gt=0, le=30 * 86400, allow_inf_nan=False)
    """Seconds from submission after which the answer is worth nothing."""
    metadata: dict[Annotated[str, Field(max_length=64)], Text] = Field(default_factory=dict, max_length=MAX_METADATA)
    """Up to 16 pairs of strings that come back with the job."""
    webhook_url: Annotated[str, Field(max_length=MOST_CHARS)] | None = None
    """Where to send the job, signed, once it has ended."""

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: object) -> object:
        return [value] if isinstance(value, str) else [] if value is None else value

    @field_validator(
        "temperature", "top_p", "presence_penalty", "frequency_penalty", "repetition_penalty", mode="before"
    )
    @classmethod
    def _int_is_float(cls, value: object) -> object:
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _agree(self) -> Request:
        if not self.prompt:
            raise InvalidRequest("prompt", "is empty; give some text or at least one token id")
        if len(self.prompt) > MAX_PROMPT_CHARS:
            raise InvalidRequest(
                "prompt", f"holds {len(self.prompt):,} items, more than {MAX_PROMPT_CHARS:,}; shorten it"
            )
        if isinstance(self.prompt, str) and not is_text(self.prompt):
            raise InvalidRequest("prompt", HALF_PAIR)
        if self.webhook_url is not None:
            parse_target(self.webhook_url)
        if self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                "min_tokens", f"{self.min_tokens} is above max_tokens, {self.max_tokens}; lower it or raise max_tokens"
            )
        return self

    def to_json(self) -> str:
        """The request without its defaults, keys sorted: equal requests give equal text."""
        return _ENCODER.encode(self.model_dump(exclude_defaults=True))


def fingerprint(text: str) -> str:
    """Tell requests apart by their ``to_json``: 32 hex digits of SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def parse_request(values: Mapping[str, Any]) -> Request:
    """Check a caller's values. Raises InvalidRequest naming field, value, limit and remedy, never the prompt."""
    for name in values:
        if name not in Request.model_fields:
            raise InvalidRequest(_short(name), f"is not a field of a request{nearest(str(name), Request.model_fields)}")
    if values.get("prompt") is None:
        raise InvalidRequest("prompt", "is missing; give some text or a list of token ids")
    try:
        return Request.model_validate(dict(values))
    except ValidationError as error:
        raise explain(error) from None


def explain(error: ValidationError) -> InvalidRequest:
    """Turn pydantic's first complaint into ours."""
    first = error.errors(include_url=False)[0]
    name, kind, limits = str(first["loc"][0]), first["type"], first.get("ctx", {})
    if name == "prompt":
        return InvalidRequest(name, "must be text or a list of token ids, each 0 or more")
    if kind == "missing":
        return InvalidRequest(name, f"lacks {first['loc'][-1]}")
    given = first["input"]
    value = _short(repr(given))
    if kind == "string_unicode":
        return InvalidRequest(name, HALF_PAIR)
    if kind == "too_long":
        return InvalidRequest(name, f"{len(given)} are too many; at most {limits['max_length']} are allowed")
    if kind == "string_too_long":
        return InvalidRequest(name, f"{value} has {len(given)} characters; at most {limits['max_length']} are allowed")
    if kind == "string_too_short":
        return InvalidRequest(name, f"{value} is too short; give at least {limits['min_length']} character")
    if kind == "literal_error":
        return InvalidRequest(name, f"{value} is unknown; choose one of {limits['expected'].replace(chr(39), '')}")
    bounds = {"greater_than_equal": "ge", "greater_than": "gt", "less_than_equal": "le", "less_than": "lt"}
    if kind in bounds:
        words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
        limit = limits[bounds[kind]]
        return InvalidRequest(name, f"{_plain(given)} is out of range; give {words[bounds[kind]]} {_plain(limit)}")
    return InvalidRequest(name, f"{value} is of the wrong kind; give {_WANTED.get(kind, 'another value')}")


def _short(text: object) -> str:
    return str(text) if len(str(text)) <= 60 else str(text)[:57] + "..."


def _plain(number: float) -> str:
    """A number as people write it: 0 for 0.0, 1.5 for 1.5."""
    return str(int(number)) if float(number).is_integer() else str(number)


@lru_cache(maxsize=256)
def model_name(model_id: str) -> str:
    """The short name of a model, used in queues and keys: the last part of a hub id or folder."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", model_id.rstrip("/").rsplit("/", 1)[-1]).lower()
    if not SAFE_NAME.match(name):
        raise InvalidRequest("model", f"{model_id!r} gives no usable name; name a hub id or a folder")
    return name


def is_text(words: str) -> bool:
    """Whether it can be written as UTF-8: half a surrogate pair can't."""
    try:
        words.encode()
    except UnicodeEncodeError:
        return False
    return True


def job_id_of(tenant: str, idempotency_key: str | None) -> str:
    """The id of a new job: the key's if it has one."""
    return keyed_job_id(tenant, idempotency_key) if idempotency_key else new_job_id()


def keyed_job_id(tenant: str, idempotency_key: str) -> str:
    """The id of the one job that a tenant may have under an idempotency key (uuid5, always the same)."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"bloomfarm:{tenant}:{idempotency_key}"))


def new_job_id() -> str:
    """A UUIDv7 (RFC 9562): 48 bits of Unix milliseconds, then random bits, so that ids sort by time."""
    value = int(time.time() * 1000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76
    digits = f"{value & ~(0x3 << 62) | 0x2 << 62:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def may_show_id(given: object) -> TypeGuard[str]:
    """Whether what a message calls a job may be shown to people: only a UUID. Another id may be a stranger's prompt."""
    return isinstance(given, str) and _UUID.match(given) is not None


def created_at(job_id: str) -> float | None:
    """The Unix time in a UUIDv7; None for any other id."""
    try:
        value = uuid.UUID(job_id)
    except ValueError:
        return None
    return (value.int >> 80) / 1000 if value.version == 7 else None
