"""The keeper's side of the ledger: dispatch what there is room for, and do what time brings."""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from dataclasses import dataclass

from farm import keys
from farm.connection import our_errors
from farm.errors import ServerFull
from farm.ledger.jobs import Jobs

FULL_MS = 5_000  # a keeper that dies must not leave the farm shut
TIDY_S = 10.0  # how often what idle tenants leave behind is looked at
MOST = 128  # jobs a call, so that no script takes more than a few milliseconds


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A message to publish. ``plain`` holds the headers of a plain Celery message as JSON, or ''."""

    id: str
    number: int
    model: str
    priority: str
    plain: str


@dataclass(frozen=True, slots=True)
class Round:
    """What one look did. ``is_leader`` False: another keeper leads and nothing was done."""

    is_leader: bool
    messages: list[Dispatch]
    leases_ended: int = 0
    expired: int = 0
    republished: int = 0


class Upkeep:
    """The ledger for one keeper, under its own token."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self.token = secrets.token_hex(8)
        self._tidied_at = time.monotonic()

    def keep(self) -> Round:
        """End leases and waits, expire, publish again, trim. Harmless when repeated."""
        settings = self.jobs.settings
        answer = self.jobs.scripts.call(
            "upkeep",
            self.token,
            int(settings.keeper.lock_s * 1000),
            MOST,
            int(settings.keeper.stall_s * 1000),
            int(settings.lease.lease_s * 1000),
            int(settings.limits.retention_s * 1000),
            settings.keeper.max_strikes,
            settings.keeper.max_losses,
            int(settings.keeper.unclaimed_s * 1000),
            settings.limits.max_finished,
            settings.limits.max_finished_bytes,
            settings.limits.usage_days,
        )
        if answer[0] != "leader":
            return Round(False, [])
        if time.monotonic() - self._tidied_at >= TIDY_S:
            self.tidy()
        ended, expired, republished = answer[1:4]
        return Round(True, _messages(answer[4:]), ended, expired, republished)

    def dispatch(self) -> Round:
        """Choose what goes out next, in order, as far as workers have room."""
        settings = self.jobs.settings
        answer = self.jobs.scripts.call(
            "dispatch",
            self.token,
            int(settings.keeper.lock_s * 1000),
            MOST,
            int(settings.keeper.liveness_s * 1000),
            settings.keeper.margin,
            int(settings.keeper.unclaimed_s * 1000),
            settings.limits.high_lead_tokens,
        )
        return Round(answer[0] == "leader", _messages(answer[1:]))

    def tidy(self) -> int:
        """Forget tenants that are idle and would start no earlier if they were new. Returns how many."""
        self._tidied_at = time.monotonic()
        with our_errors(self.jobs.where):
            models = self.jobs.client.hkeys(keys.MODELS)
        return sum(self.jobs.scripts.call("tidy", str(model), MOST) for model in models)

    def watch_memory(self) -> bool:
        """Have new jobs refused while the server is short of memory. Returns whether it is."""
        client, share = self.jobs.client, self.jobs.settings.limits.memory_share
        # A server without any memory left refuses this too, and new jobs by itself.
        with suppress(ServerFull), our_errors(self.jobs.where):
            memory = client.info("memory")
            is_full: bool = 0 < memory["maxmemory"] * share < memory["used_memory"]
            if is_full:
                client.set(keys.FULL, "1", px=FULL_MS)
            else:
                client.delete(keys.FULL)
            return is_full
        return True

    def wait(self, timeout_s: float) -> None:
        """Return when there may be something to do, or after ``timeout_s``."""
        with our_errors(self.jobs.where):
            self.jobs.client.blpop([keys.WAKE], timeout=timeout_s)

    def resign(self) -> None:
        """Give up the lead, if held, so that another keeper need not wait for the lock to end."""
        with our_errors(self.jobs.where):
            if self.jobs.client.get(keys.LEADER) == self.token:
                self.jobs.client.delete(keys.LEADER)


def _messages(flat: list[str]) -> list[Dispatch]:
    parts = zip(*(flat[place::5] for place in range(5)), strict=True)
    return [Dispatch(job_id, int(number), model, priority, plain) for job_id, number, model, priority, plain in parts]
