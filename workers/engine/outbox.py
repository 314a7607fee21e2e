"""What is still to be reported: tokens wait a moment for others, so that not every step costs a message.

Knows no connection and no clock.
"""

from __future__ import annotations

from workers.engine.protocol import BEAT_S, Emitted, Event, Failed, Finished


class Outbox:
    """Events of each job in order, its tokens together where nothing else of it stands in between."""

    def __init__(self, gather_s: float) -> None:
        """gather_s: how long tokens may wait for others; no longer than a beat."""
        self._gather_s = gather_s
        self._events: dict[str, list[Event]] = {}
        self._ended: set[str] = set()

    @property
    def tokens(self) -> int:
        """How many tokens are still to be told."""
        waiting = (event for events in self._events.values() for event in events)
        return sum(len(event.tokens) for event in waiting if isinstance(event, Emitted))

    @property
    def has_ends(self) -> bool:
        """Whether a job's last word waits: it frees a slot, and goes at once."""
        return bool(self._ended)

    def add(self, events: list[Event]) -> None:
        """Take in what a step said."""
        for event in events:
            waiting = self._events.setdefault(event.id, [])
            before = waiting[-1] if waiting else None
            if isinstance(event, Emitted) and isinstance(before, Emitted):
                waiting[-1] = Emitted(event.id, before.tokens + event.tokens)
            else:
                waiting.append(event)
            if isinstance(event, Finished | Failed):
                self._ended.add(event.id)

    def forget(self, id: str) -> None:
        """Drop what was to be said about a job."""
        self._events.pop(id, None)
        self._ended.discard(id)

    def is_due(self, silence_s: float) -> bool:
        """Whether to take all of it, so long after that was last done."""
        return silence_s >= (min(self._gather_s, BEAT_S) if self._events else BEAT_S)

    def take(self) -> list[Event]:
        """All of it; the box is empty then."""
        events = [event for waiting in self._events.values() for event in waiting]
        self._events, self._ended = {}, set()
        return events

    def take_ends(self) -> list[Event]:
        """All about the jobs that have ended; what others say waits on."""
        events = [event for id in self._events if id in self._ended for event in self._events[id]]
        for id in self._ended:
            del self._events[id]
        self._ended = set()
        return events
