"""``python -m workers``: a worker as ``farm worker`` starts it, set up by FARM_ settings alone."""

from __future__ import annotations

import sys
from importlib import import_module

from farm.errors import FarmError
from workers.exits import EXIT_REFUSED


def main() -> None:
    """Run until terminated. Exits with 78 when settings or model are refused."""
    try:
        module = import_module("workers.app")
    except FarmError as error:
        sys.stderr.write(f"farm worker: {error}\n")
        raise SystemExit(EXIT_REFUSED) from None
    module.app.worker_main(
        [
            "worker",
            "--without-gossip",
            "--without-mingle",
            "--loglevel",
            "WARNING",
            "--hostname",
            f"{module.host.name}@%h",
        ]
    )


if __name__ == "__main__":
    main()
