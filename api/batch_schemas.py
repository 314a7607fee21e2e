"""The shapes of files and batches, for OpenAPI: OpenAI's own, with the webhook beside them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from api.schemas import WEBHOOK_URL, Webhook
from farm.batch_contracts import WINDOW, BatchRequest
from farm.ledger.batches import Status

FILE_ID = "file-6f1c1f2b0d1b4e0b8d6f1c1f2b0d1b4e"
OUTPUT_ID = "file-0d1b4e6f1c1f2b0d1b4e0b8d6f1c1f2b"
BATCH_ID = "batch_2b0d1b4e6f1c1f2b0d1b4e0b8d6f1c1f"
MADE = 1795418696


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class File(_Shape):
    """A file. Times are Unix seconds."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"]
    status_details: None


class FileList(_Shape):
    """Some files."""

    object: Literal["list"]
    data: list[File]
    first_id: str | None
    last_id: str | None
    """What to give as ``after`` for those that follow."""
    has_more: bool


class FileDeleted(_Shape):
    """A file that was deleted."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


class BatchFault(_Shape):
    """Why a batch failed."""

    code: str
    message: str
    line: int | None
    param: str | None


class BatchFaults(_Shape):
    """Why a batch failed, all of it."""

    object: Literal["list"]
    data: list[BatchFault]


class Counts(_Shape):
    """A batch's lines."""

    total: int
    completed: int
    failed: int


class CachedTokens(_Shape):
    """Not counted; always 0."""

    cached_tokens: int


class ReasoningTokens(_Shape):
    """There are none."""

    reasoning_tokens: int


class BatchUsage(_Shape):
    """Tokens of the lines that were answered."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class Batch(_Shape):
    """A batch. Times are Unix seconds, null until their status is reached."""

    id: str
    object: Literal["batch"]
    endpoint: str
    model: str | None
    """The first that a line names."""
    errors: BatchFaults | None
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None
    """Answers; null if there are none."""
    error_file_id: str | None
    """Lines without an answer; null if there are none."""
    created_at: int
    expires_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: Counts
    usage: BatchUsage
    metadata: dict[str, str]
    webhook: Webhook | None = None
    """Only with webhook_url."""


class BatchList(_Shape):
    """Some batches, the newest first."""

    object: Literal["list"]
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    """What to give as ``after`` for those that follow."""
    has_more: bool


SHAPES: tuple[type[BaseModel], ...] = (File, FileList, FileDeleted, Batch, BatchList)


def batch_request_schema(refs: str) -> dict[str, Any]:
    """The JSON schema of a batch's request. refs: where its parts will stand."""
    schema = BatchRequest.model_json_schema(ref_template=refs)
    fields = schema["properties"]
    fields["completion_window"]["pattern"] = f"^{WINDOW}$"
    url, _ = fields["webhook_url"]["anyOf"]
    url["pattern"] = WEBHOOK_URL
    schema["examples"] = [{"input_file_id": FILE_ID, "endpoint": "/v1/completions", "completion_window": "24h"}]
    return schema


def file_example() -> dict[str, Any]:
    """A file that was uploaded."""
    return {
        "id": FILE_ID,
        "object": "file",
        "bytes": 1043,
        "created_at": MADE,
        "expires_at": MADE + 30 * 86_400,
        "filename": "prompts.jsonl",
        "purpose": "batch",
        "status": "processed",
        "status_details": None,
    }


def batch_example() -> dict[str, Any]:
    """A batch that has ended."""
    return {
        "id": BATCH_ID,
        "object": "batch",
        "endpoint": "/v1/completions",
        "model": "tiny-bloom",
        "errors": None,
        "input_file_id": FILE_ID,
        "completion_window": "24h",
        "status": "completed",
        "output_file_id": OUTPUT_ID,
        "error_file_id": None,
        "created_at": MADE,
        "expires_at": MADE + 86_400,
        "in_progress_at": MADE + 1,
        "finalizing_at": MADE + 9,
        "completed_at": MADE + 9,
        "failed_at": None,
        "expired_at": None,
        "cancelling_at": None,
        "cancelled_at": None,
        "request_counts": {"total": 48, "completed": 48, "failed": 0},
        "usage": {
            "input_tokens": 611,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 1500,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 2111,
        },
        "metadata": {},
    }


def list_example(item: dict[str, Any]) -> dict[str, Any]:
    """A page with one item."""
    return {"object": "list", "data": [item], "first_id": item["id"], "last_id": item["id"], "has_more": False}
