"""Keeps prompts and completions out of Celery's events, logs and inspection answers, for foreign tasks too."""

from __future__ import annotations

from typing import Any

from celery.worker.request import Request


class PlainResult:
    """A completion on its way to Celery's result backend: JSON there, a count of tokens wherever it is shown."""

    def __init__(self, body: dict[str, Any]) -> None:
        self._body = body

    def __json__(self) -> dict[str, Any]:
        return self._body

    def __repr__(self) -> str:
        return f"<{self._body['usage']['completion_tokens']} tokens>"


class QuietRequest(Request):
    """A task request that shows ids and counts instead of arguments."""

    @property
    def argsrepr(self) -> str:
        return f"<{len(self.args)} arguments>" if self.args else "()"

    @property
    def kwargsrepr(self) -> str:
        return str(shown(self.kwargs))

    def info(self, safe: bool = True) -> Any:
        """What ``celery inspect`` shows; never the arguments, even when asked for more than the safe part."""
        del safe
        return {**super().info(safe=True), "args": self.argsrepr, "kwargs": self.kwargsrepr}

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.humaninfo()}>"


def shown(kwargs: dict[str, Any]) -> dict[str, object]:
    """Task arguments fit to be seen: job, dispatch and max_tokens; of all else only the names."""
    safe = {
        name: kwargs[name] for name in ("job", "dispatch", "max_tokens") if isinstance(kwargs.get(name), (str, int))
    }
    return {name: safe.get(name, "...") for name in kwargs}
