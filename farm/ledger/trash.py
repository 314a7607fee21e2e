"""What is to be deleted: files whose time has come, and paths of the file store that no file of the ledger has."""

from __future__ import annotations

from farm import keys
from farm.connection import our_errors
from farm.ledger.jobs import Jobs

UPLOAD_MS = 86_400_000  # what is written and not registered by then is deleted
RETRY_MS = 60_000


class Trash:
    """Deletes nothing of the store itself: it knows what is due, and is told what was done."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def announce(self, path: str, delay_ms: int = UPLOAD_MS) -> None:
        """Say that something is about to be written to a path, to be deleted unless it is registered in time."""
        with our_errors(self._jobs.where):
            self._jobs.client.zadd(keys.FILES_TRASH, {path: self._now_ms() + delay_ms})

    def drop_expired(self, most: int) -> int:
        """Forget files whose time has come. Returns how many were looked at."""
        due = self._due(keys.FILES_DUE, most)
        for file_id in due:
            self._jobs.scripts.call("file_drop", file_id, "", "1")
        return len(due)

    def paths(self, most: int) -> list[str]:
        """Paths that are to be deleted now."""
        return self._due(keys.FILES_TRASH, most)

    def deleted(self, path: str) -> None:
        """A path is gone from the store."""
        with our_errors(self._jobs.where):
            self._jobs.client.zrem(keys.FILES_TRASH, path)

    def not_deleted(self, path: str) -> None:
        """A path could not be deleted: its turn comes again in a minute, after those that are due before."""
        with our_errors(self._jobs.where):
            self._jobs.client.zadd(keys.FILES_TRASH, {path: self._now_ms() + RETRY_MS}, xx=True)

    def _due(self, key: str, most: int) -> list[str]:
        with our_errors(self._jobs.where):
            found = self._jobs.client.zrangebyscore(key, "-inf", self._now_ms(), start=0, num=most)
        return [str(member) for member in found]

    def _now_ms(self) -> int:
        seconds, microseconds = self._jobs.client.time()
        return int(seconds) * 1000 + int(microseconds) // 1000
