"""What callers send to have a batch run, and its rules: OpenAI's, with other windows and a webhook beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from farm.contracts import MAX_METADATA, Text, explain
from farm.egress import MOST_CHARS, parse_target
from farm.errors import InvalidRequest, nearest

COMPLETIONS = "/v1/completions"
MOST_S = 30 * 86_400
WINDOW = "([1-9][0-9]{0,5}s|[1-9][0-9]{0,3}m|[1-9][0-9]?h|[1-9]d|[12][0-9]d|30d)"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Expiry(BaseModel):
    """How long files are kept, from their making on."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    anchor: Literal["created_at"] = "created_at"
    """From when on it counts."""
    seconds: int = Field(ge=3600, le=MOST_S)
    """How long: an hour to thirty days."""

    @field_validator("seconds", mode="before")
    @classmethod
    def _whole(cls, value: object) -> object:
        return int(value) if isinstance(value, float) and value.is_integer() else value


class BatchRequest(BaseModel):
    """A file of requests to answer within a window."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    input_file_id: Annotated[str, Field(min_length=1, max_length=128)]
    """The id of an uploaded file of purpose batch: a request per line."""
    endpoint: Literal["/v1/completions"]
    """What each line asks."""
    completion_window: Annotated[str, Field(max_length=16)] = "24h"
    """How long the batch may take, as 24h; or with s (up to six digits), m (four), h (two), d (up to 30). What is not
    answered by then expires."""
    metadata: dict[Annotated[str, Field(max_length=64)], Text] = Field(default={}, max_length=MAX_METADATA)
    """Up to 16 pairs of strings that come back with the batch."""
    output_expires_after: Expiry | None = None
    """How long output and errors are kept; unset, as long as other files."""
    webhook_url: Annotated[str, Field(max_length=MOST_CHARS)] | None = None
    """Where to send the batch, signed, once it has ended."""

    @model_validator(mode="after")
    def _agree(self) -> BatchRequest:
        window_s(self.completion_window)
        if self.webhook_url is not None:
            parse_target(self.webhook_url)
        return self

    def to_json(self) -> str:
        """The request without its defaults, keys sorted: equal requests give equal text."""
        return json.dumps(self.model_dump(exclude_defaults=True), sort_keys=True, separators=(",", ":"))


def parse_batch_request(values: Mapping[str, Any]) -> BatchRequest:
    """Check a caller's values. Raises InvalidRequest naming field, value, limit and remedy."""
    for name in values:
        if name not in BatchRequest.model_fields:
            raise InvalidRequest(name[:60], f"is not a field of a batch{nearest(name[:60], BatchRequest.model_fields)}")
    for name in ("input_file_id", "endpoint"):
        if values.get(name) is None:
            raise InvalidRequest(name, "is missing; a batch needs it")
    given = {name: value for name, value in values.items() if value is not None}
    try:
        return BatchRequest.model_validate(given)
    except ValidationError as error:
        raise explain(error) from None


def window_s(text: str) -> int:
    """The seconds that a window as 24h stands for. Raises InvalidRequest."""
    if not re.fullmatch(WINDOW, text):
        raise InvalidRequest(
            "completion_window", f"{text[:20]!r} is no window; give 24h, or another up to 999999s, 9999m, 99h or 30d"
        )
    return int(text[:-1]) * _SECONDS[text[-1]]
