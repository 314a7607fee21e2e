"""The output file of a batch: locked, appended to line by line, and fit to go on from after a crash.

Which lines have an answer is kept in a temporary SQLite database: a 16-byte digest of each custom_id, on disk once it
outgrows a cache of some megabytes, so that memory does not grow with the batch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
import stat
import tempfile
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any, Self

from farm.batch_lines import DUPLICATE_ID, ID
from farm.errors import FarmError

START = b'{"id":"' + ID.encode()
AFTER_ID = b',"response":'


class OutputUnusable(FarmError):
    """The output file is in use, or holds something else than a batch's answers."""

    code = "output_unusable"


class Standing(Enum):
    """What to do with a line: run it, skip it since its answer is there, or refuse it as a repetition.

    Of answers that are there, a completion is ANSWERED, an error that may not come again PASSING, any other FAILED.
    """

    NEW = "new"
    ANSWERED = "answered"
    PASSING = "passing"
    FAILED = "failed"
    REPEATED = "repeated"


class Answers:
    """The answers of a batch. Use it in a ``with``; one process at a time may."""

    def __init__(self, path: Path, *, retry_errors: bool = False) -> None:
        """Open or make the file. retry_errors: take errors out that may not come again, so that their lines are new.

        Raises OutputUnusable, OSError.
        """
        self._path = path
        self.retried = 0
        """How many errors were taken out."""
        self._file = _open_locked(path)
        try:
            if retry_errors:
                self._take_errors_out()
            # done: how its answer stands, if there is one; repeats: refusals of later lines with its id; seen: lines of
            # this run with it.
            self._ids = sqlite3.connect("", isolation_level=None)
            self._ids.execute("PRAGMA journal_mode = OFF")
            self._ids.execute(
                "CREATE TABLE ids (digest BLOB PRIMARY KEY, done TEXT DEFAULT '', repeats INT DEFAULT 0,"
                " seen INT DEFAULT 0) WITHOUT ROWID"
            )
            try:
                self._read()
            except BaseException:
                self._ids.close()
                raise
        except BaseException:
            os.close(self._file)
            raise

    def stand(self, custom_id: str) -> Standing:
        """How the next line with this id stands. Ask once per line, in the order of the input."""
        row = self._ids.execute(
            "INSERT INTO ids (digest, seen) VALUES (?, 1) ON CONFLICT (digest) DO UPDATE SET seen = seen + 1"
            " RETURNING done, repeats, seen",
            (_digest(custom_id),),
        ).fetchone()
        done, repeats, seen = row
        if seen == 1:
            return Standing(done) if done else Standing.NEW
        return Standing.FAILED if repeats >= seen - 1 else Standing.REPEATED

    def write(self, record: dict[str, Any]) -> None:
        """Append an answer: one write, so that a crash can tear only the last line. Raises OSError."""
        line = json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "backslashreplace")
        rest = memoryview(line + b"\n")
        while rest:
            rest = rest[os.write(self._file, rest) :]

    def close(self) -> None:
        """Have the file on disk and let it go."""
        self._ids.close()
        os.fsync(self._file)
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _take_errors_out(self) -> None:
        """Put a copy without retryable errors in the file's place; after a crash it is the old one or the new."""
        place = self._path.resolve()
        before = os.fstat(self._file)
        copy, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
        try:
            fcntl.flock(copy, fcntl.LOCK_EX)
            with os.fdopen(os.dup(self._file), "rb") as old, os.fdopen(os.dup(copy), "wb") as new:
                old.seek(0)
                for line in old:
                    if _standing(line) is Standing.PASSING:
                        self.retried += 1
                    else:
                        new.write(line)
            if self.retried:
                os.fchmod(copy, stat.S_IMODE(before.st_mode))
                os.fsync(copy)
                Path(name).replace(place)
                fcntl.fcntl(copy, fcntl.F_SETFL, fcntl.fcntl(copy, fcntl.F_GETFL) | os.O_APPEND)
                self._file, copy = copy, self._file
        finally:
            os.close(copy)
            Path(name).unlink(missing_ok=True)

    def _read(self) -> None:
        """Learn the answers that are there, and cut off a line that a crash has torn."""
        end = 0
        self._ids.execute("BEGIN")
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    self._mend(line, end)
                elif line.strip():
                    self._learn(number, line)
                end += len(line)
        self._ids.execute("COMMIT")

    def _mend(self, torn: bytes, end: int) -> None:
        if (record := _head(torn)) is not None and _is_json(torn):
            self._note(record, torn)
            os.write(self._file, b"\n")
        elif torn.startswith(START) or START.startswith(torn):
            os.ftruncate(self._file, end)
        else:
            raise self._foreign("the last line")

    def _learn(self, number: int, line: bytes) -> None:
        record = _head(line)
        if record is None:
            raise self._foreign(f"line {number}")
        self._note(record, line)

    def _note(self, record: dict[str, Any], line: bytes) -> None:
        digest = _digest(record["custom_id"])
        if str(record["id"]).startswith(DUPLICATE_ID):
            self._ids.execute(
                "INSERT INTO ids (digest, repeats) VALUES (?, 1)"
                " ON CONFLICT (digest) DO UPDATE SET repeats = repeats + 1",
                (digest,),
            )
        else:
            self._ids.execute(
                "INSERT INTO ids (digest, done) VALUES (?, ?) ON CONFLICT (digest) DO UPDATE SET done = excluded.done",
                (digest, _standing(line).value),
            )

    def _foreign(self, where: str) -> OutputUnusable:
        return OutputUnusable(f"{self._path}: {where} is no answer of a batch; choose another output file")


def _open_locked(path: Path) -> int:
    """The file, for this process alone. Raises OutputUnusable, OSError."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        if not stat.S_ISREG(os.fstat(file).st_mode):  # a device may have no end, and a pipe can't be read again
            os.close(file)
            raise OutputUnusable(f"{path} is no ordinary file; choose one, which a later run can read")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise OutputUnusable(f"{path} is being written by another batch; wait for it or stop it") from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        os.close(file)  # a batch that has just ended had put another file in its place


def _standing(line: bytes) -> Standing:
    """How the answer in a line stands."""
    if line.startswith(START) and b',"response":null,"error":{' not in line:
        return Standing.ANSWERED  # as most are: not worth parsing
    try:
        record = json.loads(line)
        if record["response"] is not None:
            return Standing.ANSWERED
        is_passing = record["error"]["retryable"] is True and isinstance(record["custom_id"], str)
    except (ValueError, RecursionError, TypeError, KeyError):
        return Standing.FAILED
    return Standing.PASSING if is_passing else Standing.FAILED


def _head(line: bytes) -> dict[str, Any] | None:
    """``id`` and ``custom_id`` of an answer, None if it is none. The rest of a line as we write it is not parsed."""
    cut = line.find(AFTER_ID) if line.startswith(START) else -1
    try:
        record = json.loads(line[:cut] + b"}" if cut > 0 else line)
    except (ValueError, RecursionError):
        return None
    is_ours = isinstance(record, dict) and isinstance(record.get("custom_id"), str) and "id" in record
    return record if is_ours and (cut > 0 or "response" in record) else None


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _digest(custom_id: str) -> bytes:
    return hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
