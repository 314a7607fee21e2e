"""Batches in the ledger, as the worker that drives one sees it: take it, keep it, write how far it came, end it.

Like a job, a batch belongs to whoever made the latest nonce. A step is numbered, so that writing it twice counts once.
"""

from __future__ import annotations

import json
import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from farm import keys
from farm.connection import our_errors
from farm.ledger.batches import Batch, Status, batch_of
from farm.ledger.files import PREFIX as FILE_PREFIX
from farm.ledger.files import counted_bytes
from farm.ledger.jobs import Jobs

Ending = Literal["completed", "expired", "cancelled"]
Ranges = tuple[tuple[int, int], ...]
_NAMESPACE = uuid.UUID("6c0f7a2e-6d0f-5b8e-9d55-0c6a1f0a7a11")


class LeaseLost(Exception):
    """Somebody else drives this batch."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a batch has come.

    All lines before ``next_line``, which begins at ``offset``, are settled: they stand in a part. So are those in
    ``ahead``. ``repeats`` are lines whose custom_id an earlier one has. ``faults`` counts turns that a defect
    has ended since a line was settled.
    """

    next_line: int = 1
    offset: int = 0
    ahead: Ranges = ()
    repeats: Ranges = ()
    total: int = 0
    done: int = 0
    bad: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str = ""
    faults: int = 0
    ending: Ending | Literal[""] = ""

    def to_fields(self) -> dict[str, str | int]:
        """As the hash holds it."""
        body = {name: getattr(self, name) for name in self.__slots__}
        return body | {"ahead": json.dumps(self.ahead), "repeats": json.dumps(self.repeats)}

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> Progress:
        """From a hash; the beginning where it says nothing."""
        start = cls()
        values: dict[str, Any] = {}
        for name in cls.__slots__:
            if (text := fields.get(name)) is None:
                continue
            if name in ("ahead", "repeats"):
                values[name] = tuple((first, last) for first, last in json.loads(text))
            else:
                values[name] = type(getattr(start, name))(text)
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Product:
    """A file that a batch leaves behind. ``role`` is output or error; ``path`` is where its content lies."""

    role: Literal["output", "error"]
    path: str
    size: int


@dataclass(slots=True, eq=False)
class Drive:
    """A batch in somebody's hands: for the driver's thread, but for what ``keep`` hears."""

    batch: Batch
    nonce: str
    keep_s: float
    step: int
    progress: Progress
    status: Status
    parts: list[str] = field(default_factory=list)
    others_wait: bool = False
    is_overdue: bool = False
    is_lost: bool = False

    @property
    def id(self) -> str:
        return self.batch.id

    def job_id(self, line: int) -> str:
        """The job of a line: always the same, so that it is never submitted twice."""
        return str(uuid.uuid5(_NAMESPACE, f"{self.id}:{line}"))

    def file_id(self, role: str) -> str:
        """The id of what it leaves behind."""
        return FILE_PREFIX + uuid.uuid5(_NAMESPACE, f"{self.id}:{role}").hex

    @property
    def folder(self) -> str:
        """Where its parts lie until its end."""
        return f"batches/{self.id}/"


class Driving:
    """The ledger for one driver of batches. Thread-safe."""

    def __init__(self, jobs: Jobs, worker: str) -> None:
        self._jobs = jobs
        self._worker = worker
        self._lease_ms = int(jobs.settings.lease.lease_s * 1000)
        self._files = jobs.settings.files
        self._call = jobs.scripts.call

    def take(self) -> Drive | None:
        """The batch that has waited longest, if any waits."""
        nonce = secrets.token_hex(8)
        answer = self._call("batch_take", nonce, self._worker, self._lease_ms)
        if not answer:
            return None
        batch_id, *flat = answer
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        batch = batch_of(batch_id, fields)
        with our_errors(self._jobs.where):
            parts = [str(part) for part in self._jobs.client.lrange(keys.batch_parts(batch_id), 0, -1)]
        keep_s = float(fields.get("keep_s", self._files.retention_s))
        return Drive(batch, nonce, keep_s, int(fields["step"]), Progress.of(fields), batch.status, parts)

    def keep(self, drive: Drive) -> None:
        """Renew the lease, and learn what became of the batch meanwhile."""
        self._hear(drive, self._call("batch_keep", drive.id, drive.nonce, self._lease_ms, "", "", 0))

    def advance(
        self, drive: Drive, progress: Progress, parts: Sequence[str] = (), status: Status | None = None
    ) -> None:
        """Write a step: progress, and the parts that hold what is new in it. Raises LeaseLost: it counts not."""
        fields = [part for pair in progress.to_fields().items() for part in pair]
        self._hear(
            drive,
            self._call(
                "batch_keep",
                *(drive.id, drive.nonce, self._lease_ms, drive.step + 1, status or "", len(parts), *parts, *fields),
                durable_ms=self._jobs.durable_ms,
            ),
        )
        if drive.is_lost:
            raise LeaseLost
        drive.step += 1
        drive.progress = progress
        drive.parts += parts

    def give_back(self, drive: Drive, wait_s: float = 0.0) -> None:
        """Leave the batch to whoever comes next, not before ``wait_s``."""
        self._call("batch_keep", drive.id, drive.nonce, int(1000 * wait_s), "", "", 0)

    def end(
        self, drive: Drive, status: Status, products: Sequence[Product], errors: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Write the outcome, once. Raises LeaseLost."""
        fields: list[str | int] = ["errors", json.dumps(list(errors))] if errors else []
        files: list[str | int] = []
        for made in products:
            name = f"{drive.id}_{made.role}.jsonl"
            files += (f"{made.role}_file", drive.file_id(made.role), made.path, name, made.size)
            files += (counted_bytes(made.size), int(1000 * drive.keep_s))
        answer = self._call(
            "batch_end",
            *(drive.id, drive.nonce, status, int(1000 * self._files.retention_s), drive.folder),
            *(len(fields), *fields, *files),
            durable_ms=self._jobs.durable_ms,
        )
        if answer[0] != "ok":
            raise LeaseLost

    def _hear(self, drive: Drive, answer: list[Any]) -> None:
        if answer[0] == "lost":
            drive.is_lost = True
        else:
            drive.status, drive.others_wait, drive.is_overdue = answer[1], int(answer[2]) > 0, bool(answer[3])
