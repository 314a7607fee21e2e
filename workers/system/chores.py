"""The chores of a worker without an engine, started and stopped together."""

from __future__ import annotations

from collections.abc import Mapping

from farm.ledger.jobs import Jobs
from workers.system.batches import BatchDriver
from workers.system.janitor import Janitor
from workers.system.webhooks import WebhookSender


class Chores:
    """Batches, webhooks, files."""

    def __init__(self, jobs: Jobs, worker: str) -> None:
        """Raises SettingsError for a file store that can't be used."""
        self._batches = BatchDriver(jobs, worker)
        self._webhooks = WebhookSender(jobs)
        self._janitor = Janitor(jobs)

    @property
    def webhook_outcomes(self) -> Mapping[str, int]:
        """How many calls of webhooks went how."""
        return self._webhooks.outcomes

    def start(self) -> None:
        self._batches.start()
        self._webhooks.start()
        self._janitor.start()

    def ask_to_stop(self) -> None:
        """Begin to hand over; returns at once."""
        self._batches.ask_to_stop()

    def stop(self) -> None:
        """Hand over what is going on."""
        self._batches.ask_to_stop()
        self._janitor.stop()
        self._webhooks.stop()
        self._batches.stop()
