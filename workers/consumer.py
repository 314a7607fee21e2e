"""Celery's consumer, sending task events in groups.

Celery publishes what happened to tasks at the end of every turn of its loop, which is a message or two per job and a
fifth of the worker's own time. People look at Flower less often than that.
"""

from __future__ import annotations

from typing import Any

from celery.worker import consumer

EVENTS_EVERY_S = 0.1
"""How long an event may wait for others. Celery sends 24 together without waiting."""


# The stubs know the class and little of what it has.
_Consumer: Any = consumer.Consumer


class GroupingConsumer(_Consumer):  # type: ignore[misc]
    """A consumer that publishes buffered events a few times a second."""

    _is_due = False

    def on_send_event_buffered(self) -> None:
        """See that what is buffered is sent soon. Called from task threads too."""
        if self.hub and not self._is_due:
            self._is_due = True
            # Wakes the loop, which a timer set from another thread would not.
            self.hub.call_soon(self.hub.call_later, EVENTS_EVERY_S, self._send_events)

    def stop(self) -> None:
        """Publish what is buffered, and stop."""
        self._flush_events()
        super().stop()

    def _send_events(self, *_: Any) -> None:
        self._is_due = False
        self._flush_events()
