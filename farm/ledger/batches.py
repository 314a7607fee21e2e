"""Batches in the ledger, as their tenants see them: make, read, list and cancel. ``driving`` is the worker's side."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from farm import keys
from farm.batch_contracts import BatchRequest, window_s
from farm.connection import our_errors
from farm.contracts import keyed_job_id
from farm.errors import FarmError, IdempotencyConflict, InvalidRequest, QuotaExceeded
from farm.ledger.files import list_ids, no_place, unknown
from farm.ledger.jobs import Jobs
from farm.ledger.webhook_log import lane_and_url, webhook_of
from farm.results import WebhookView

Status = Literal["validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"]
ENDED: tuple[Status, ...] = ("completed", "failed", "expired", "cancelled")
STAMPS = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
PREFIX = "batch_"
RETRY_S = 30.0


class BatchNotFound(FarmError):
    """No batch of this tenant has this id."""

    code = "batch_not_found"
    http_status = 404


class BatchEnded(FarmError):
    """The batch has ended; there is nothing to cancel."""

    code = "batch_ended"
    http_status = 409


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch at one moment. Times are Unix seconds of the server's clock; ``stamps`` has those of its statuses."""

    id: str
    tenant: str
    status: Status
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: float
    expires_at: float
    finished_at: float | None
    stamps: Mapping[str, float]
    total: int
    completed: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    output_file_id: str | None
    error_file_id: str | None
    model: str | None
    metadata: dict[str, str]
    errors: list[dict[str, Any]] = field(default_factory=list)
    webhook: WebhookView | None = None

    def to_dict(self) -> dict[str, Any]:
        """As OpenAI's clients know it."""
        body: dict[str, Any] = {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": int(self.created_at),
            "expires_at": int(self.expires_at),
            **{f"{name}_at": int(self.stamps[name]) if name in self.stamps else None for name in STAMPS},
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "usage": {
                "input_tokens": self.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": self.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self.prompt_tokens + self.completion_tokens,
            },
            "metadata": self.metadata,
        }
        if self.webhook is not None:
            body["webhook"] = self.webhook.to_dict()
        return body


@dataclass(frozen=True, slots=True)
class Page:
    """Some of a list, and whether there is more of it."""

    batches: list[Batch]
    has_more: bool


class Batches:
    """The records of batches. Thread-safe."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._settings = jobs.settings.batches

    def add(self, request: BatchRequest, tenant: str, idempotency_key: str | None = None) -> Batch:
        """Accept a batch; with a key, the same key and request again give the same one.

        Raises FileNotFound, InvalidRequest for a file of another purpose, QuotaExceeded, IdempotencyConflict.
        """
        batch_id = _id_of(tenant, idempotency_key)
        fields = {
            "endpoint": request.endpoint,
            "window": request.completion_window,
            "metadata": json.dumps(request.metadata),
        }
        if request.output_expires_after is not None:
            fields["keep_s"] = str(request.output_expires_after.seconds)
        if request.webhook_url is not None:
            fields["webhook"] = lane_and_url(request.webhook_url)
        word, *more = self._jobs.scripts.call(
            "batch_add",
            *(batch_id, tenant, request.input_file_id),
            hashlib.sha256(request.to_json().encode()).hexdigest()[:32],
            self._settings.open_batches,
            1000 * window_s(request.completion_window),
            *[part for pair in fields.items() for part in pair],
            durable_ms=self._jobs.durable_ms,
        )
        if word == "no file":
            raise unknown(request.input_file_id)
        if word == "wrong file":
            raise InvalidRequest("input_file_id", f"is a file of purpose {more[0]}; upload it with purpose batch")
        if word == "limit":
            most = self._settings.open_batches
            raise QuotaExceeded(
                f"tenant {tenant} has {more[0]} of at most {most} batches that run; wait for one, or cancel it",
                "open_batches",
                most,
                retry_after_s=RETRY_S,
            )
        if word == "conflict":
            raise IdempotencyConflict("this key came with another batch before; use another key, or send the same")
        return self.get(batch_id, tenant)

    def get(self, batch_id: str, tenant: str) -> Batch:
        """A tenant's batch. Raises BatchNotFound, also for another tenant's."""
        batch = self.find(batch_id, tenant)
        if batch is None:
            raise _unknown(batch_id)
        return batch

    def find(self, batch_id: str, tenant: str) -> Batch | None:
        """A tenant's batch, None where none is."""
        [batch] = self._read([batch_id])
        return batch if batch is not None and batch.tenant == tenant else None

    def page(self, tenant: str, *, after: str | None = None, limit: int = 20) -> Page:
        """A tenant's batches, the newest first. after: the id of the last batch of the page before.

        Raises BatchNotFound for an ``after`` that is none of them, nor was within an hour.
        """
        found: list[Batch] = []
        while True:
            wanted = limit + 1 - len(found)
            ids = list_ids(self._jobs, tenant, keys.batches(tenant), "desc", after, wanted)
            if ids is None:
                raise BatchNotFound(no_place(after))
            found += [batch for batch in self._read(ids) if batch is not None and batch.tenant == tenant]
            if len(ids) < wanted or len(found) > limit:
                return Page(found[:limit], len(found) > limit)
            after = ids[-1]

    def cancel(self, batch_id: str, tenant: str) -> Batch:
        """Ask for the end of a batch; asking again changes nothing. Raises BatchNotFound, BatchEnded."""
        status = self._jobs.scripts.call("batch_cancel", batch_id, tenant)
        if not status:
            raise _unknown(batch_id)
        if status in ENDED and status != "cancelled":
            raise BatchEnded(f"batch {batch_id} is {status}; only one that has not ended can be cancelled")
        return self.get(batch_id, tenant)

    def _read(self, ids: Sequence[str]) -> list[Batch | None]:
        with our_errors(self._jobs.where), self._jobs.client.pipeline(transaction=False) as pipe:
            for batch_id in ids:
                pipe.hgetall(keys.batch(batch_id))
            found = pipe.execute()
        return [batch_of(batch_id, fields) if fields else None for batch_id, fields in zip(ids, found, strict=True)]


def batch_of(batch_id: str, fields: Mapping[str, str]) -> Batch:
    """A batch by its hash."""
    return Batch(
        id=batch_id,
        tenant=fields["tenant"],
        status=fields["status"],  # type: ignore[arg-type]
        endpoint=fields["endpoint"],
        input_file_id=fields["input"],
        completion_window=fields["window"],
        created_at=int(fields["created"]) / 1000,
        expires_at=int(fields["expires"]) / 1000,
        finished_at=int(fields["finished"]) / 1000 if "finished" in fields else None,
        stamps={name: int(fields[name]) / 1000 for name in STAMPS if name in fields},
        total=int(fields.get("total", 0)),
        completed=int(fields.get("done", 0)),
        failed=int(fields.get("bad", 0)),
        prompt_tokens=int(fields.get("prompt_tokens", 0)),
        completion_tokens=int(fields.get("completion_tokens", 0)),
        output_file_id=fields.get("output_file"),
        error_file_id=fields.get("error_file"),
        model=fields.get("model") or None,
        metadata=json.loads(fields["metadata"]),
        errors=json.loads(fields.get("errors", "[]")),
        webhook=webhook_of(fields),
    )


def _id_of(tenant: str, idempotency_key: str | None) -> str:
    if idempotency_key is None:
        return PREFIX + uuid.uuid4().hex
    return PREFIX + keyed_job_id(tenant, f"batch:{idempotency_key}").replace("-", "")


def _unknown(batch_id: str) -> BatchNotFound:
    return BatchNotFound(f"batch {batch_id[:80]} is unknown; check the id")
