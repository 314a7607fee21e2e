"""A stack in the foreground of a terminal, for ``farm up`` and ``farm demo``: signals, the wait for it, its events."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType

from rich.text import Text

from farm.cli.output import emit, stderr
from farm.local.stack import Stack
from farm.local.supervisor import Event


@contextmanager
def run_stack(stack: Stack, *, interrupts: bool = False) -> Iterator[Stack]:
    """Start a stack and stop it at the end; Ctrl-C, SIGTERM and a closed terminal ask it to stop, and again to hurry.

    interrupts: have the first of them raise KeyboardInterrupt as well, for work that does not wait on the stack.
    """

    def ask(_number: int, _frame: FrameType | None) -> None:
        is_first = not stack.is_stopping
        stack.ask_to_stop()
        if interrupts and is_first:
            raise KeyboardInterrupt

    before = {
        number: signal.signal(number, ask)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # as nohup has it
    }
    try:
        with stack:
            yield stack
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_ready(stack: Stack) -> bool:
    """Wait for the workers, with a sign of life on a terminal. False: asked to stop."""
    words = f"starting {len(stack.worker_names)} x {stack.settings.model.name} ..."
    with stderr().status(words) if sys.stderr.isatty() else nullcontext():
        return stack.wait_ready(stack.settings.engine.load_timeout_s)


def say_event(event: Event) -> None:
    """One line per event, on stderr."""
    style = {"restarted": "green", "missing": "yellow"}.get(event.kind, "red")
    stderr().print(Text.assemble((event.part, "bold"), " ", (event.text, style)))


def emit_event(event: Event) -> None:
    """One JSON line per event."""
    emit({"event": event.kind, "part": event.part, "text": event.text})
