"""Where the program ``farm`` begins: it loads the command line, and Ctrl-C ends it quietly meanwhile.

Imports nothing else at the top, since what is loaded before ``main`` runs can be interrupted with a traceback.
"""

import sys
from importlib import import_module

INTERRUPTED = 130  # that of farm.cli.exits, which takes longer to load


def main() -> None:
    """Load the command line and run it."""
    try:
        run = import_module("farm.cli.main").main
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    run()
