"""The state folder of a local farm: who may run there, where things lie, and the note by which others find it.

Two locks, both the kernel's, so that no crash leaves one behind: ``lock`` is held by ``farm up`` itself, ``redis/lock``
by the server as well, so that a new server never opens data that an old one is still writing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from farm.errors import FarmError

LOG_BYTES = 10_000_000


class AlreadyRunning(FarmError):
    """Another ``farm up`` runs in this state folder."""

    code = "already_running"


@dataclass(frozen=True, slots=True)
class Note:
    """What ``farm.json`` says of a running farm. ``redis_url`` holds the password: the file is for its owner alone.

    metrics: where each part answers Prometheus, by its name: worker-1, worker-2 …, system, api.
    """

    redis_url: str
    flower_url: str | None
    api_url: str | None
    pid: int
    started_at: float
    workers: list[str]
    model: str
    version: str
    metrics: dict[str, str] = field(default_factory=dict)


class Folder:
    """A state folder. Made, private to its owner, by ``claim``."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.data = self.path / "redis"
        self.logs = self.path / "logs"
        self.run = self.path / "run"
        self.note_path = self.path / "farm.json"
        self.door_path = self.path / "server.json"
        self._locks: list[int] = []

    @property
    def data_lock(self) -> int:
        """The descriptor that the server is to hold open."""
        return self._locks[1]

    def claim(self, timeout_s: float = 20.0) -> None:
        """Make the folder and hold it. Waits for the server of a killed ``farm up`` to let go of its data.

        Raises AlreadyRunning with the running farm's addresses.
        """
        for path in (self.path, self.data, self.logs, self.run):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._locks = [_lock(self.path / "lock", 0.0)]
            self._locks.append(_lock(self.data / "lock", timeout_s))
        except BlockingIOError:
            taken = bool(self._locks)
            self.release()
            raise AlreadyRunning(
                f"a server that nobody watches still writes to {self.data}; stop it, or choose another --state-dir"
                if taken
                else self._who_runs()
            ) from None
        self.note_path.unlink(missing_ok=True)

    def release(self) -> None:
        """Let go. The data stays locked for as long as a server holds it."""
        while self._locks:
            os.close(self._locks.pop())

    def write_note(self, note: Note) -> None:
        """Publish the farm, at once and only to its owner."""
        self._write(self.note_path, asdict(note))

    def server_door(self) -> tuple[int, str]:
        """Port and password of the server that ran here last, where clients look for it again; else 0 and ''."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            body = json.loads(self.door_path.read_text(encoding="utf-8"))
            return int(body["port"]), str(body["password"])
        return 0, ""

    def keep_server_door(self, port: int, password: str) -> None:
        """Remember them for the next start, only for the owner."""
        self._write(self.door_path, {"port": port, "password": password})

    def remove_note(self) -> None:
        self.note_path.unlink(missing_ok=True)

    def read_note(self) -> dict[str, Any]:
        """What ``farm.json`` says; empty where there is none or it is unreadable."""
        with contextlib.suppress(OSError, ValueError):
            body = json.loads(self.note_path.read_text(encoding="utf-8"))
            if isinstance(body, dict):
                return body
        return {}

    def log_path(self, name: str) -> Path:
        """A part's log; one that has grown large is set aside first, in place of the one set aside before."""
        path = self.logs / f"{name}.log"
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > LOG_BYTES:
                path.replace(path.with_suffix(".log.1"))
        return path

    def _write(self, path: Path, body: dict[str, Any]) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=self.path, prefix=f".{path.name}.")  # made with mode 0600
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(body, file, indent=1)
        Path(temporary).replace(path)

    def _who_runs(self) -> str:
        note = self.read_note()
        api = f", API {note['api_url']}" if note.get("api_url") else ""
        flower = f", Flower {note['flower_url']}" if note.get("flower_url") else ""
        address = str(note.get("redis_url", "")).rpartition("@")[2].partition("/")[0]
        where = (
            f" (pid {note['pid']}, Redis {address}{api}{flower})" if note.get("pid") else ", still starting or stopping"
        )
        return f"a farm already runs in {self.path}{where}; use it, stop it, or choose another --state-dir"


def _lock(path: Path, timeout_s: float) -> int:
    """Lock a file and return its descriptor. Raises BlockingIOError when another holds it for longer."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise
            time.sleep(0.05)
        else:
            return descriptor
