"""Keeps prompts and completions out of Celery's events, logs and inspection answers, for foreign tasks too.

What a foreign message holds is unchecked here: nothing in this module may raise, or one message ends the worker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery.exceptions import InvalidTaskError
from celery.worker.request import Request
from celery.worker.strategy import default

from farm.contracts import PRIORITIES, SAFE_NAME, may_show_id

BODY = "body"
TRACE = "celery.app.trace"
NOSY = ("celery.worker.consumer.consumer", "celery.worker.strategy", "celery.worker.request", "kombu")


class PlainResult:
    """A completion on its way to Celery's result backend: JSON there, a count of tokens wherever it is shown."""

    def __init__(self, body: dict[str, Any]) -> None:
        self._body = body

    def __json__(self) -> dict[str, Any]:
        return self._body

    def __repr__(self) -> str:
        return repr(Figures(self._body["usage"]["completion_tokens"], self._body["timings"]["queued_s"]))


class Figures:
    """What events, logs and Flower show as the result of a job. ``farm.flower.redaction`` reads it back."""

    def __init__(self, tokens: int, queued_s: float | None) -> None:
        self.tokens = tokens
        self.queued_s = queued_s

    def __repr__(self) -> str:
        waited = {} if self.queued_s is None else {"queued_s": round(self.queued_s, 3)}
        return str({"tokens": self.tokens, **waited})


class QuietRequest(Request):
    """A task request that shows ids and counts instead of arguments."""

    @property
    def argsrepr(self) -> str:
        args: Any = self.args
        return f"<{len(args)} arguments>" if isinstance(args, (list, tuple)) and args else "()"

    @property
    def kwargsrepr(self) -> str:
        return str(shown(self.kwargs))

    def info(self, safe: bool = True) -> Any:
        """What ``celery inspect`` shows; never the arguments, even when asked for more than the safe part."""
        del safe
        return {**super().info(safe=True), "args": self.argsrepr, "kwargs": self.kwargsrepr}

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.humaninfo()}>"


def strategy(task: Any, app: Any, consumer: Any, **options: Any) -> Callable[..., None]:
    """Celery's default strategy, for messages of the right shape; any other would end the worker's consumer."""
    take = default(task, app, consumer, **options)

    def checked(message: Any, body: Any, *rest: Any, **more: Any) -> None:
        if not _is_well_formed(message.payload, message.headers):
            raise InvalidTaskError("its arguments are no list and mapping, or its id is no text")
        take(message, body, *rest, **more)

    return checked


def _is_well_formed(payload: Any, headers: Any) -> bool:
    """Whether a message is of Celery's second protocol ([args, kwargs, embed]) or its first (one mapping)."""
    if isinstance(payload, dict):
        args, kwargs, task_id = payload.get("args", []), payload.get("kwargs", {}), payload.get("id")
        return isinstance(args, list) and isinstance(kwargs, dict) and isinstance(task_id, str)
    if not isinstance(payload, list) or len(payload) != 3:
        return False
    args, kwargs, embed = payload
    shapes = isinstance(args, list) and isinstance(kwargs, dict) and isinstance(embed, (dict, type(None)))
    return shapes and isinstance((headers or {}).get("id"), str)


class NoBodies(logging.Filter):
    """Cuts a log line where Celery or kombu goes on to quote the body of a message that they can't use."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if BODY in message:
            record.msg, record.args = message.partition(BODY)[0] + "body: withheld", ()
        return True


class NoErrorTexts(logging.Filter):
    """Cuts the text of an error that nobody foresaw out of Celery's line about its task: it may hold a prompt."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, dict) and "exc" in record.args and record.exc_info and record.exc_info[0]:
            record.args = {**record.args, "exc": record.exc_info[0].__name__, "traceback": ""}
        return True


def shown(kwargs: object) -> dict[str, object]:
    """Task arguments fit to be seen: job, dispatch, model, priority and max_tokens; of all else only how many."""
    if not isinstance(kwargs, dict):
        return {}
    safe = {name: kwargs[name] for name in ("dispatch", "schema", "max_tokens") if isinstance(kwargs.get(name), int)}
    if may_show_id(kwargs.get("job")):
        safe["job"] = kwargs["job"]
    if isinstance(kwargs.get("model"), str) and SAFE_NAME.match(kwargs["model"]):
        safe["model"] = kwargs["model"]
    if kwargs.get("priority") in PRIORITIES:
        safe["priority"] = kwargs["priority"]
    others = len(kwargs) - len(safe)
    return {**safe, "others": others} if others else safe


def withhold_bodies() -> None:
    """Put filters on the loggers that quote messages and errors. Twice is once."""
    for name, kind in ((TRACE, NoErrorTexts), *((name, NoBodies) for name in NOSY)):
        logger = logging.getLogger(name)
        if not any(isinstance(known, kind) for known in logger.filters):
            logger.addFilter(kind())
