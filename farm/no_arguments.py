"""What ``python -m workers`` and its like say to --help: settings alone set them up, and a command takes options."""

from __future__ import annotations

import argparse


def take_none(module: str, command: str) -> None:
    """Answer --help, and refuse any argument with a hint at the command. Exits with 0 and 2."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=f"Run what {command} runs, set up by FARM_ settings alone.",
        epilog=f"{command} takes options: {command} --help",
    )
    _, given = parser.parse_known_args()
    if given:
        parser.error(f"it takes no arguments; {command} takes options: {command} --help")
