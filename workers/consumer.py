"""Celery's consumer, sending task events in groups and asking for no message that could not be worked on.

Celery publishes what happened to tasks at the end of every turn of its loop, which is a message or two per job and a
fifth of the worker's own time. People look at Flower less often than that.

It also takes messages as long as it has threads. While the engine is away they would wait here, and other workers would
wait for them. And messages that the ledger has no room for would hold the threads that jobs of the ledger need.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from celery.worker import consumer

EVENTS_EVERY_S = 0.1
"""How long an event may wait for others. Celery sends 24 together without waiting."""


# The stubs know the class and little of what it has.
_Consumer: Any = consumer.Consumer


class GroupingConsumer(_Consumer):  # type: ignore[misc]
    """A consumer that publishes buffered events a few times a second, and consumes while ``may_consume`` says so, from
    the queues that ``may_take_from`` lets it."""

    may_consume: Callable[[], bool] = staticmethod(lambda: True)
    may_take_from: Callable[[str], bool] = staticmethod(lambda _queue: True)
    _due_at = 0.0

    def on_ready(self) -> None:
        """Ask ``may_consume`` and ``may_take_from`` before each message. Each connection has another channel."""
        super().on_ready()
        channel = self.task_consumer.channel
        qos, cycle = channel.qos, channel._queue_cycle
        has_room, in_turn = qos.can_consume, cycle.consume
        qos.can_consume = lambda: self.may_consume() and has_room()
        cycle.consume = lambda count: [queue for queue in in_turn(count) if self.may_take_from(queue)]

    def look_again(self) -> None:
        """Have the loop look at ``may_consume``, and whether to stop, at once. Called from any thread."""
        if self.hub:
            self.hub.call_soon(bool)

    def on_send_event_buffered(self) -> None:
        """See that what is buffered is sent soon. Called from task threads too."""
        now = time.monotonic()
        # By the clock and not by a flag: a lost connection takes the timer along.
        if self.hub and now >= self._due_at:
            self._due_at = now + EVENTS_EVERY_S
            # Wakes the loop, which a timer set from another thread would not.
            self.hub.call_soon(self.hub.call_later, EVENTS_EVERY_S, self._flush_events)

    def stop(self) -> None:
        """Publish what is buffered, and stop."""
        self._flush_events()
        super().stop()
