"""The sender of webhooks: takes from the ledger what is due, calls it and notes how that went.

Signed as Standard Webhooks have it (standardwebhooks.com), under an id that stays the same for all tries. One event
loop in a thread of its own; several workers may do this side by side.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import structlog
from standardwebhooks import Webhook

from farm import __version__
from farm.egress import Egress
from farm.errors import FarmError
from farm.ledger.batches import Batches
from farm.ledger.jobs import Jobs
from farm.ledger.webhooks import Due, Outbox, Outcome, WebhookSecrets
from farm.logs import log_defect
from workers.system.calling import Called, Caller

log = structlog.get_logger(__name__)

LOOK_S = 0.25
OUTAGE_S = 1.0
GONE = 410


class WebhookSender:
    """One sender and its thread."""

    def __init__(self, jobs: Jobs, *, egress: Egress | None = None) -> None:
        self._jobs = jobs
        self._settings = jobs.settings.webhooks
        self._outbox = Outbox(jobs)
        self._secrets = WebhookSecrets(jobs)
        self._batches = Batches(jobs)
        self._egress = egress or Egress(self._settings.allowed)
        self._stopped = threading.Event()
        self._counting = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)
        self._busy: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        """Calls made so far: ok, failed, gone or refused."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Make no new calls; those that are on their way have a moment to end. What is cut off is called again."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)

    def _run(self) -> None:
        slots = self._settings.concurrency
        # A resolver that hangs holds its thread longer than the call.
        with (
            contextlib.closing(_Threads(2 * slots, "webhook-names")) as names,
            contextlib.closing(_Threads(4, "webhook-ledger")) as ledger,
        ):
            while not self._stopped.is_set():
                try:
                    asyncio.run(self._send(names.pool, ledger.pool))
                except Exception as error:
                    log_defect(log, "webhook_sender_failed", error)
                    self._busy.clear()
                    self._stopped.wait(OUTAGE_S)

    async def _send(self, names: ThreadPoolExecutor, ledger: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        caller = Caller(self._egress, names, self._settings.timeout_s)
        calls: set[asyncio.Task[None]] = set()
        while not self._stopped.is_set():
            found: list[Due] = []
            room = self._settings.concurrency - len(calls)
            if room:
                try:
                    found = await loop.run_in_executor(ledger, self._outbox.take, room, dict(self._busy))
                except FarmError as error:
                    log.warning("webhooks_wait_for_server", error=str(error))
                    await asyncio.sleep(OUTAGE_S)
            for due in found:
                self._busy[due.lane] += 1
                call = asyncio.create_task(self._deliver(due, caller, ledger))
                call.add_done_callback(calls.discard)
                calls.add(call)
            if not found and calls:
                await asyncio.wait(calls, timeout=LOOK_S, return_when="FIRST_COMPLETED")
            elif not found:
                await asyncio.sleep(LOOK_S)
        if calls:
            await asyncio.wait(calls, timeout=0.5)

    async def _deliver(self, due: Due, caller: Caller, ledger: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        try:
            prepared = await loop.run_in_executor(ledger, self._prepare, due)
            if prepared is None:
                return
            began = time.monotonic()
            called = await caller.post(due.url, *prepared)
            await loop.run_in_executor(ledger, self._note, due, called, time.monotonic() - began)
        except FarmError as error:
            # It is taken up again when the hold on it ends.
            log.warning("webhook_waits_for_server", about=due.member, error=str(error))
        except Exception as error:
            log_defect(log, "webhook_failed", error, about=due.member)
        finally:
            self._busy[due.lane] -= 1
            if not self._busy[due.lane]:
                del self._busy[due.lane]

    # On a thread.

    def _prepare(self, due: Due) -> tuple[dict[str, str], bytes] | None:
        """Headers and body; None for what is gone or goes on after all."""
        event = self._event(due)
        if event is None:
            return None
        text = json.dumps(event, separators=(",", ":"))
        now = datetime.now(UTC)
        signatures = [Webhook(secret).sign(due.message_id, now, text) for secret in self._secrets.of(due.tenant)]
        headers = {
            "content-type": "application/json",
            "user-agent": f"bloomfarm/{__version__}",
            "webhook-id": due.message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signatures),
        }
        return headers, text.encode()

    def _event(self, due: Due) -> dict[str, Any] | None:
        kind, _, item_id = due.member.partition(":")
        if kind == "batch":
            batch = self._batches.find(item_id, due.tenant)
            if batch is None or batch.finished_at is None:
                return None
            return _event_of(f"batch.{batch.status}", batch.finished_at, batch.to_dict())
        [view] = self._jobs.views([item_id])
        if view is None or view.finished_at is None:
            return None
        data = {name: value for name, value in view.to_dict().items() if name != "webhook"}
        return _event_of(f"job.{view.state.value}", view.finished_at, data)

    def _note(self, due: Due, called: Called, duration_s: float) -> None:
        outcome: Outcome = "retry"
        word = "refused" if called.is_refused else "failed"
        if called.status is not None and 200 <= called.status < 300:
            outcome, word = "delivered", "ok"
        elif called.status == GONE:
            outcome, word = "refused", "gone"
        with self._counting:
            self.outcomes[word] += 1
        state = self._outbox.note(
            due,
            outcome,
            status=called.status,
            duration_s=duration_s,
            error=called.error,
            least_wait_s=called.retry_after_s,
        )
        log.info(
            "webhook_called",
            about=due.member,
            status=called.status,
            error=called.error,
            ms=round(1000 * duration_s),
            state=state,
        )


class _Threads:
    """A pool that is left behind when it is closed: its threads may hang in the resolver."""

    def __init__(self, most: int, name: str) -> None:
        self.pool = ThreadPoolExecutor(most, thread_name_prefix=name)

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)


def _event_of(kind: str, ended_at: float, data: dict[str, Any]) -> dict[str, Any]:
    """The body that Standard Webhooks recommend."""
    return {"type": kind, "timestamp": datetime.fromtimestamp(ended_at, UTC).isoformat(), "data": data}
