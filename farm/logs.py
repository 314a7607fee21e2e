"""Structured logs: a constant message, facts as fields. Never a prompt or a completion."""

from __future__ import annotations

import logging
import sys
import threading
import traceback

import structlog

from farm.settings import LogsSettings

MOST_CAUSES = 8
MOST_MEMBERS = 3  # of an exception group


def log_defect(log: structlog.typing.FilteringBoundLogger, event: str, error: BaseException, **facts: object) -> None:
    """Log an error that nobody foresaw, as ``where``: what it says of itself may hold a prompt, and is left out."""
    log.error(event, where=origin(error), **facts)


def origin(error: BaseException | None) -> str:
    """Stack and type of an error, then those of its causes; neither a message nor any value.

    Of a group also its first members, each with the innermost frame that it was raised in.
    """
    parts: list[str] = []
    while error is not None and len(parts) < MOST_CAUSES:
        parts.append("".join(traceback.format_tb(error.__traceback__)) + type(error).__name__ + _members(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\ncaused by\n".join(parts)


def _members(error: BaseException) -> str:
    """The first errors in a group, those of groups within it included, and how many more there are."""
    if not isinstance(error, BaseExceptionGroup):
        return ""
    found: list[str] = []
    waiting, left = list(error.exceptions), 0
    while waiting:
        member = waiting.pop(0)
        if isinstance(member, BaseExceptionGroup):
            waiting = [*member.exceptions, *waiting]
        elif len(found) < MOST_MEMBERS:
            found.append("".join(traceback.format_tb(member.__traceback__)[-1:]) + type(member).__name__)
        else:
            left += 1
    more = [f"{left} more"] if left else []
    return "".join(f"\nwith\n{part}" for part in (*found, *more))


def setup(settings: LogsSettings) -> None:
    """Send all logs of this process to stderr: text on a terminal, JSON elsewhere. Call once, from an entry point.

    Whoever logs an exception, other libraries too: the line has its ``origin`` and not its text.
    """
    as_text = settings.format == "text" or (settings.format == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.ExceptionRenderer(lambda found: origin(found[1])),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(settings.level)),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if as_text else structlog.processors.JSONRenderer()
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level)
    threading.excepthook = _log_end_of_thread
    # Their own lines say what ours say already, or nothing; their warnings and errors stay.
    for noisy in ("celery", "kombu", "amqp", "uvicorn", "httpcore2"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(settings.level)))
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of whatever strangers send


def _log_end_of_thread(ended: threading.ExceptHookArgs) -> None:
    """A thread that an error ended; Python's own report has the error's text."""
    name = ended.thread.name if ended.thread else ""
    if ended.exc_value is not None:
        log_defect(structlog.get_logger(__name__), "thread_ended", ended.exc_value, thread=name)
