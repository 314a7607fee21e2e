"""Run a command that dies with whoever started it, even if that one is killed and can say nothing.

A program of its own, run by path: ``python tether.py SIGNAL PARENT COMMAND…`` asks the kernel for SIGNAL at PARENT's
end and becomes COMMAND. The kernel counts the thread that started it as the parent, so one long-lived thread must start
all. Other systems than Linux have no such call: there COMMAND runs untied.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def launcher(signal_number: int) -> tuple[str, ...]:
    """What to put before a command so that it gets this signal when the calling thread ends."""
    return (sys.executable, "-I", "-S", __file__, str(int(signal_number)), str(os.getpid()))


def tie(signal_number: int, parent: int) -> None:
    """Have this process get a signal when its parent ends. Ends it here if that has happened."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0)
        if os.getppid() != parent:
            sys.exit("the parent has ended already")


def main() -> None:
    """Tie this process to its parent and become the command."""
    signal_number, parent, *command = sys.argv[1:]
    tie(int(signal_number), int(parent))
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
