"""Files of tenants in the ledger: what there is, whose it is and where it lies. The content is in the file store."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import redis

from farm import keys
from farm.connection import our_errors
from farm.errors import FarmError
from farm.ledger.jobs import Jobs

LEAST_BYTES = 4096  # what a file counts for at the least, so that a pile of empty ones is bounded too
MOST_PAGE = 10_000
READ_AT_ONCE = 500
PREFIX = "file-"
Order = Literal["asc", "desc"]


class FileNotFound(FarmError):
    """No file of this tenant has this id."""

    code = "file_not_found"
    http_status = 404


class FileInUse(FarmError):
    """A batch that has not ended reads this file."""

    code = "file_in_use"
    http_status = 409


class StorageFull(FarmError):
    """A tenant keeps as much in files as it may."""

    code = "storage_full"
    http_status = 413


@dataclass(frozen=True, slots=True)
class File:
    """One file. ``path`` is where it lies in the store. Times are Unix seconds."""

    id: str
    tenant: str
    filename: str
    purpose: str
    size: int
    path: str
    created_at: float
    expires_at: float

    def to_dict(self) -> dict[str, Any]:
        """As OpenAI's clients know it."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.size,
            "created_at": int(self.created_at),
            "expires_at": int(self.expires_at),
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


@dataclass(frozen=True, slots=True)
class Page:
    """Some of a list, and whether there is more of it."""

    files: list[File]
    has_more: bool


class Files:
    """The records of files. Thread-safe."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._settings = jobs.settings.files

    def add(
        self,
        file_id: str,
        tenant: str,
        path: str,
        *,
        filename: str,
        purpose: str,
        size: int,
        keep_s: float | None = None,
    ) -> File:
        """Register a file whose content is in the store. Raises StorageFull, ServerFull, ServerUnreachable."""
        keep_ms = int(1000 * (self._settings.retention_s if keep_s is None else keep_s))
        most = self._settings.tenant_bytes
        args: list[str | int] = [file_id, tenant, most, counted_bytes(size), keep_ms, path]
        args += ["filename", filename, "purpose", purpose, "bytes", size]
        answer: list[str] = self._jobs.scripts.call("file_add", *args, durable_ms=self._jobs.durable_ms)
        if answer[0] == "full":
            raise _full(tenant, int(answer[1]), size, most)
        return File(file_id, tenant, filename, purpose, size, path, int(answer[1]) / 1000, int(answer[2]) / 1000)

    def check_room(self, tenant: str, size: int) -> None:
        """Raise StorageFull if a tenant has no room for so many bytes."""
        with our_errors(self._jobs.where):
            taken = int(self._jobs.client.hget(keys.FILE_BYTES, tenant) or 0)
        if taken + counted_bytes(size) > self._settings.tenant_bytes:
            raise _full(tenant, taken, size, self._settings.tenant_bytes)

    def get(self, file_id: str, tenant: str, *, even_expired: bool = False) -> File:
        """A tenant's file. Raises FileNotFound, also for another tenant's and for one whose time has come.

        even_expired: whether its time does not matter; a batch may still read it.
        """
        [found], now_ms = self._read([file_id])
        if found is None or found.tenant != tenant or (1000 * found.expires_at <= now_ms and not even_expired):
            raise unknown(file_id)
        return found

    def page(
        self,
        tenant: str,
        *,
        purpose: str | None = None,
        order: Order = "desc",
        after: str | None = None,
        limit: int = MOST_PAGE,
    ) -> Page:
        """A tenant's files by when they were made. after: the id of the last file of the page before.

        Raises FileNotFound for an ``after`` that is none of them, nor was within an hour.
        """
        ids = list_ids(self._jobs, tenant, keys.files(tenant), order, after)
        if ids is None:
            raise FileNotFound(no_place(after))
        found: list[File] = []
        step = min(READ_AT_ONCE, limit + 1)
        for start in range(0, len(ids), step):
            some, now_ms = self._read(ids[start : start + step])
            for file in some:
                if file is None or file.tenant != tenant or 1000 * file.expires_at <= now_ms:
                    continue
                if purpose in (None, file.purpose):
                    if len(found) == limit:
                        return Page(found, True)
                    found.append(file)
        return Page(found, False)

    def drop(self, file_id: str, tenant: str) -> str:
        """Forget a file. Returns the path of its content, which is to be deleted now, or by the janitor.

        Raises FileNotFound, FileInUse.
        """
        path = self.get(file_id, tenant).path
        answer = self._jobs.scripts.call("file_drop", file_id, tenant, "")
        if answer[0] == "used":
            raise FileInUse(f"file {file_id} is the input of a batch that has not ended; cancel that or wait for it")
        # One that was there and is gone is forgotten, also if an answer was lost and the script ran twice.
        return path

    def _read(self, ids: Sequence[str]) -> tuple[list[File | None], int]:
        with our_errors(self._jobs.where), self._jobs.client.pipeline(transaction=False) as pipe:
            pipe.time()
            for file_id in ids:
                pipe.hgetall(keys.file(file_id))
            clock, *found = pipe.execute()
        files = [_file(file_id, fields) if fields else None for file_id, fields in zip(ids, found, strict=True)]
        return files, _ms(clock)


def new_file_id() -> str:
    """An id that nobody can guess."""
    return PREFIX + uuid.uuid4().hex


def counted_bytes(size: int) -> int:
    """What a file counts for in its tenant's room."""
    return max(size, LEAST_BYTES)


def unknown(file_id: str) -> FileNotFound:
    """The error for a file that is not there, and for one that is none of the caller's business."""
    return FileNotFound(f"file {file_id[:80]} is unknown; check the id")


def no_place(after: str | None) -> str:
    """What to say of an ``after`` that nobody knows."""
    return f"after: {(after or '')[:80]} is not in this list; list from its start, without after"


def list_ids(
    jobs: Jobs, tenant: str, key: str, order: Order, after: str | None, most: int | None = None
) -> list[str] | None:
    """Members of a tenant's list by their scores, those after one of them; None if that is not there.

    One that was taken off the list within an hour still has its place.
    """
    start = 0
    with our_errors(jobs.where):
        if after is not None:
            if (rank := _rank(jobs.client, key, after, order)) is None:
                score: Any = jobs.client.get(keys.place(tenant, after))
                if score is None:
                    return None
                start = _first_beyond(jobs.client, key, after, score, order)
            else:
                start = rank + 1
        last = -1 if most is None else start + most - 1
        return [str(member) for member in _between(jobs.client, key, start, last, order)]


def _rank(client: redis.Redis, key: str, member: str, order: Order) -> int | None:
    if order == "desc":
        found: Any = client.zrevrank(key, member)
        return None if found is None else int(found)
    found = client.zrank(key, member)
    return None if found is None else int(found)


def _first_beyond(client: redis.Redis, key: str, gone: str, score: str, order: Order) -> int:
    """The rank of what came next after a member that is gone: members of one score are in the order of their names."""
    level: Any = client.zrangebyscore(key, score, score)
    before: Any
    if order == "asc":
        before = client.zcount(key, "-inf", f"({score}")
        return int(before) + [member < gone for member in level].count(True)
    before = client.zcount(key, f"({score}", "+inf")
    return int(before) + [member > gone for member in level].count(True)


def _between(client: redis.Redis, key: str, first: int, last: int, order: Order) -> Iterable[object]:
    if order == "desc":
        return client.zrevrange(key, first, last)
    return client.zrange(key, first, last)


def _ms(clock: tuple[int, int]) -> int:
    seconds, microseconds = clock
    return seconds * 1000 + microseconds // 1000


def _file(file_id: str, fields: Mapping[str, str]) -> File:
    return File(
        id=file_id,
        tenant=fields["tenant"],
        filename=fields["filename"],
        purpose=fields["purpose"],
        size=int(fields["bytes"]),
        path=fields["path"],
        created_at=int(fields["created"]) / 1000,
        expires_at=int(fields["expires"]) / 1000,
    )


def _full(tenant: str, taken: int, size: int, most: int) -> StorageFull:
    return StorageFull(
        f"tenant {tenant} keeps {taken:,} of at most {most:,} bytes in files, and {size:,} more don't fit; delete some"
    )
