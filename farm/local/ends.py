"""How a process ended, in words."""

from __future__ import annotations

import contextlib
import signal


def how_ended(status: int) -> str:
    """An exit status as a sentence without its subject; negative for a signal."""
    if status >= 0:
        return f"ended with status {status}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"
