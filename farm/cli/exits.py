"""What the command's exit code says."""

from __future__ import annotations

from farm.errors import FarmError, InvalidRequest, ServerUnreachable, SettingsError

OK = 0
FAILED = 1
USAGE = 2
UNREACHABLE = 3
INTERRUPTED = 130  # as a shell says it of a program that Ctrl-C ended


def code_of(error: FarmError) -> int:
    """The exit code for an error: 3 when no server answers, 2 for what the caller can mend by asking otherwise."""
    if isinstance(error, ServerUnreachable):
        return UNREACHABLE
    return USAGE if isinstance(error, InvalidRequest | SettingsError) else FAILED
