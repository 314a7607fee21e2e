"""What Flower may know of a task: ids, counts and times. Nothing here may raise, or one event ends the listening.

Our workers send nothing else, but any program on the broker may send events: one that is told to, by
task_send_sent_event, announces what it sends, arguments and all; and a task that is given a completion shows it among
its arguments. So an event is not filtered but made anew, of what is known to be harmless.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import Any

from farm.contracts import PRIORITIES, SAFE_NAME, created_at, may_show_id

# Fields of a task's event that the sender's arguments and results do not reach.
PLAIN = frozenset(
    {
        *("type", "uuid", "name", "hostname", "timestamp", "local_received", "clock", "utcoffset", "pid", "runtime"),
        *("retries", "eta", "expires", "parent_id", "root_id", "queue", "exchange", "routing_key"),
        *("terminated", "signum", "expired", "requeue"),
    }
)
MOST_CHARS = 200
MOST_REPR = 2_000
_OURS = re.compile(r"(GenerationFailed)\(['\"]([a-z_]{1,60}):")  # then the reason, which may quote a wrong value
_CLASS = re.compile(r"[A-Za-z_][\w.]{0,80}")


class Count(int):
    """A number of tokens. Flower sorts by what ``repr`` gives: padded, it stands in its place."""

    def __repr__(self) -> str:
        return f"{int(self):12d}"

    __str__ = int.__repr__


class Seconds(float):
    """A duration, likewise."""

    def __repr__(self) -> str:
        return f"{float(self):12.3f}"

    __str__ = float.__repr__


def safe_event(event: dict[str, Any]) -> dict[str, Any]:
    """An event without anything that a task was given or returned. Those of workers stay as they are."""
    kind = event.get("type")
    if not isinstance(kind, str) or not kind.startswith("task-"):
        return event
    safe = {name: _short(value) for name, value in event.items() if name in PLAIN}
    given, gave = facts(event.get("kwargs")), facts(event.get("result"))
    if given.get("job") != event.get("uuid"):
        given.pop("job", None)
    if "kwargs" in event:
        safe |= {"args": "()", "kwargs": str(given)}
    if "result" in event:
        safe["result"] = str(gave) if gave else None
    if "exception" in event:
        safe |= {"exception": _exception(event["exception"]), "traceback": None}
    safe |= _columns({**given, **gave})
    waited = _waited(event, given)
    if waited is not None:
        safe.setdefault("queued_s", waited)
    return safe


def safe_request(request: dict[str, Any]) -> dict[str, Any]:
    """What a worker answers when it is asked for a task that it holds, likewise."""
    safe = {**request, "args": "()", "kwargs": str(facts(request.get("kwargs")))}
    inner = request.get("request")
    return {**safe, "request": safe_request(inner)} if isinstance(inner, dict) else safe


def facts(text: object) -> dict[str, Any]:
    """What ``workers.redaction`` wrote for people, of its own names only; nothing if it is another's text."""
    if isinstance(text, str) and len(text) <= MOST_REPR:
        try:
            text = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return {}
    if not isinstance(text, dict):
        return {}
    return {name: text[name] for name, is_fit in _FACTS.items() if name in text and is_fit(text[name])}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e12


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(SAFE_NAME.match(value))


_FACTS: dict[str, Callable[[object], bool]] = {
    "job": may_show_id,
    "dispatch": _is_count,
    "model": _is_name,
    "priority": lambda value: value in PRIORITIES,
    "max_tokens": _is_count,
    "prompt_tokens": _is_count,
    "tokens": _is_count,
    "queued_s": _is_time,
    "others": _is_count,
}


def _columns(known: dict[str, Any]) -> dict[str, Any]:
    """The facts that have a column of their own."""
    found: dict[str, Any] = {name: known[name] for name in ("model", "priority") if name in known}
    if "tokens" in known:
        found["tokens"] = Count(known["tokens"])
    if "queued_s" in known:
        found["queued_s"] = Seconds(round(known["queued_s"], 3))
    return found


def _waited(event: dict[str, Any], given: dict[str, Any]) -> Seconds | None:
    """How long a job has waited that a worker takes for the first time, by the time in its id."""
    uuid, at = event.get("uuid"), event.get("timestamp")
    if event["type"] != "task-received" or given.get("dispatch") != 1 or not _is_time(at) or not isinstance(uuid, str):
        return None
    created = created_at(uuid)
    return None if created is None else Seconds(round(max(0.0, float(at or 0) - created), 3))


def _exception(text: object) -> str | None:
    """Why a task failed: the farm's code for it, or the class of another exception. Their texts may quote anything."""
    if not isinstance(text, str):
        return None
    if ours := _OURS.match(text):
        return f"{ours[1]}({ours[2]})"
    found = _CLASS.match(text)
    return f"{found.group()}(…)" if found else None


def _short(value: object) -> object:
    return value[:MOST_CHARS] if isinstance(value, str) else value
