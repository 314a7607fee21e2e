"""``python -m workers``: a worker as ``farm worker`` starts it, set up by FARM_ settings alone."""

from __future__ import annotations

import signal
import sys
import warnings
from importlib import import_module

from celery.bin.celery import celery
from celery.exceptions import SecurityWarning

from farm.errors import FarmError
from farm.no_arguments import take_none
from workers.exits import EXIT_REFUSED


def main() -> None:
    """Run until terminated. Exits with 78 when settings or model are refused."""
    take_none("workers", "farm worker")
    # Until the worker has handlers of its own there is nothing to hand back. As a container's first process it would
    # not be ended without one.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    # Celery warns root of pickled messages; here only JSON is read.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    try:
        module = import_module("workers.app")
    except FarmError as error:
        sys.stderr.write(f"farm worker: {error}\n")
        raise SystemExit(EXIT_REFUSED) from None
    node = f"{module.host.name}@%h"
    # No gossip and no mingling: workers meet in the ledger.
    celery.main(
        ["--quiet", "--app", "workers.app", "worker", "--without-gossip", "--without-mingle", "--hostname", node]
    )


if __name__ == "__main__":
    main()
