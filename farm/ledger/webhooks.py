"""Webhooks in the ledger: what is due, how calls went, and the secrets that they are signed with.

Whatever ends with a webhook is due from that moment on, by the same script that ends it. Who takes it calls it and
notes how that went; who is never heard of again loses it after a while. So each is called at least once.
"""

from __future__ import annotations

import base64
import json
import random
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from farm import keys
from farm.connection import our_errors
from farm.ledger.jobs import Jobs
from farm.ledger.tenants import check_name
from farm.settings import WebhooksSettings

LANE_SHARE, TENANT_SHARE = 8, 4
OLD_SECRET_S = 86_400  # receivers have a day to learn a new one
MOST_OLD_SECRETS = 4  # each signs every call
JITTER = 0.2
MARGIN_MS = 60_000  # the last try must find its job still there
Outcome = Literal["delivered", "refused", "retry"]


@dataclass(frozen=True, slots=True)
class Due:
    """A webhook to call now. ``member`` is job:<id> or batch:<id>; ``event`` tells one end of it from another."""

    member: str
    tenant: str
    url: str = field(repr=False)
    event: int
    tries: int
    lane: str
    token: str

    @property
    def message_id(self) -> str:
        """The same for every try to tell of one end: job_<id>_<event> or batch_<hex>_<event>."""
        kind, _, item_id = self.member.partition(":")
        # Ids of jobs are their senders' to choose, so only ours may go without the kind before it.
        name = item_id if kind == "batch" and item_id.startswith("batch_") else f"{kind}_{item_id}"
        return f"{name}_{self.event}"


class Outbox:
    """Webhooks for one sender. Thread-safe."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._settings = jobs.settings.webhooks
        retention_ms = int(jobs.settings.limits.retention_s * 1000)
        self._give_up_ms = min(int(self._settings.give_up_s * 1000), max(0, retention_ms - MARGIN_MS))
        # Longer than a call may take, so that nobody else makes it meanwhile.
        self._hold_ms = int(2000 * self._settings.timeout_s) + 10_000

    def take(self, most: int, busy: Mapping[str, int]) -> list[Due]:
        """Up to ``most`` webhooks that are due. busy: how many calls to each lane the sender is making."""
        token = secrets.token_hex(8)
        slots = self._settings.concurrency
        shares = max(1, slots // LANE_SHARE), max(1, slots // TENANT_SHARE)
        loads = [part for pair in busy.items() for part in pair]
        flat = self._jobs.scripts.call("webhook_take", token, self._hold_ms, most, *shares, *loads)
        rows = [flat[start : start + 6] for start in range(0, len(flat), 6)]
        return [
            Due(member, tenant, url, int(event), int(tries), lane, token)
            for member, tenant, url, event, tries, lane in rows
        ]

    def note(
        self,
        due: Due,
        outcome: Outcome,
        *,
        status: int | None = None,
        duration_s: float = 0.0,
        error: str | None = None,
        least_wait_s: float = 0.0,
    ) -> str:
        """Write how a call went. Returns the state: pending, delivered, failed; '' when another call settled it.

        least_wait_s: how long the receiver asks to be left alone.
        """
        call = {"duration_s": round(duration_s, 3), "status": status, "error": error}
        wait_s = max(pause_s(self._settings, due.tries), min(least_wait_s, self._settings.retry_cap_s))
        state: str = self._jobs.scripts.call(
            "webhook_note",
            due.member,
            due.lane,
            due.event,
            due.token,
            outcome,
            int(1000 * wait_s),
            self._give_up_ms,
            json.dumps({name: value for name, value in call.items() if value is not None}),
        )
        return state


class WebhookSecrets:
    """What tenants' webhooks are signed with. The server holds them as they are: signing needs them. Thread-safe."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def of(self, tenant: str) -> list[str]:
        """The secrets to sign with, the latest first, then those whose day has not passed. None yet: one is made."""
        check_name(tenant)
        with our_errors(self._jobs.where), self._jobs.client.pipeline(transaction=False) as pipe:
            pipe.hget(keys.WEBHOOK_SECRETS, tenant)
            pipe.time()
            record, clock = pipe.execute()
            if record is None:
                self._jobs.client.hsetnx(keys.WEBHOOK_SECRETS, tenant, json.dumps({"secret": new_secret()}))
                record = self._jobs.client.hget(keys.WEBHOOK_SECRETS, tenant)
        body = json.loads(record)
        before = [(body["old"], body["old_until"]), *body.get("older", ())] if "old" in body else []
        return [body["secret"], *(secret for secret, until in before if clock[0] < until)]

    def rotate(self, tenant: str, secret: str | None = None) -> str:
        """Give a tenant a new secret; those before it sign beside it, each for a day. Returns the new one.

        secret: the new one; who says it can repeat a call whose answer was lost, and changes nothing by that. A change
        that is made anew instead takes nothing from receivers either: what they have still signs.
        """
        check_name(tenant)
        new = secret or new_secret()
        self._jobs.scripts.call("webhook_rotate", tenant, new, OLD_SECRET_S, MOST_OLD_SECRETS)
        return new


def pause_s(settings: WebhooksSettings, tries: int) -> float:
    """How long to wait after the try that came after ``tries`` others, a fifth more or less by chance."""
    wait_s = min(settings.retry_cap_s, settings.retry_base_s * 3.0 ** min(tries, 64))
    return wait_s * random.uniform(1 - JITTER, 1 + JITTER)


def new_secret() -> str:
    """A secret that nobody can guess, as Standard Webhooks write one."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
