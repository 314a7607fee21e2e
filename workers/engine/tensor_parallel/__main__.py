"""``python -m workers.engine.tensor_parallel --fd N``: one rank of an engine, over an inherited socket."""

from __future__ import annotations

import argparse
import os
import traceback
from multiprocessing.connection import Connection

from workers.engine.tensor_parallel.rank import serve


def main() -> None:
    """Serve the inherited socket. That SIGINT and SIGTERM are ignored is inherited: rank 0 decides its end."""
    parser = argparse.ArgumentParser(
        prog="python -m workers.engine.tensor_parallel", description="One rank of an engine."
    )
    parser.add_argument("--fd", type=int, required=True, help="file descriptor of the inherited socket")
    try:
        serve(Connection(parser.parse_args().fd))
    except Exception:
        traceback.print_exc()
        # At once: the group's own end may wait for ranks that wait for this one.
        os._exit(1)


if __name__ == "__main__":
    main()
