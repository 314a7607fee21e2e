"""What is still to be reported: tokens wait a moment for others, so that not every step costs a message.

Knows no connection and no clock.
"""

from __future__ import annotations

from workers.engine.protocol import BEAT_S, GATHER_S, Admitted, Emitted, Event


class Outbox:
    """Events in order, the tokens of a job together where nothing else of that job stands in between."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._last: dict[str, int] = {}
        self._is_urgent = False

    def add(self, events: list[Event]) -> None:
        """Take in what a step said."""
        for event in events:
            at = self._last.get(event.id)
            before = self._events[at] if at is not None else None
            if at is not None and isinstance(event, Emitted) and isinstance(before, Emitted):
                self._events[at] = Emitted(event.id, before.tokens + event.tokens)
            else:
                self._last[event.id] = len(self._events)
                self._events.append(event)
            self._is_urgent |= not isinstance(event, Admitted | Emitted)

    def forget(self, id: str) -> None:
        """Drop what was to be said about a job."""
        self._events = [event for event in self._events if event.id != id]
        self._last = {event.id: i for i, event in enumerate(self._events)}

    def is_due(self, silence_s: float) -> bool:
        """Whether to report after so long a silence. What frees a slot goes at once."""
        return self._is_urgent or silence_s >= (GATHER_S if self._events else BEAT_S)

    def take(self) -> list[Event]:
        """All of it; the box is empty then."""
        events, self._events, self._last, self._is_urgent = self._events, [], {}, False
        return events
