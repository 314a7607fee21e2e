"""``python -m workers.engine --fd N``: the engine process, over an inherited socket."""

from __future__ import annotations

import argparse
import os
import signal
from multiprocessing.connection import Connection

from workers.engine.process import serve
from workers.visible_gpus import BUS_ORDER


def main() -> None:
    """Serve the inherited socket. Ignores SIGINT and SIGTERM: the worker decides when the engine ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # Read once, when torch is loaded. How often a thread of torch's looks for work before it sleeps: left to itself it
    # looks 300,000 times, and with others on the same two cores steps take 20 times as long; never looking halves the
    # speed of a machine that is ours alone.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("CUDA_DEVICE_ORDER", BUS_ORDER)
    parser = argparse.ArgumentParser(prog="python -m workers.engine", description="The engine process of a worker.")
    parser.add_argument("--fd", type=int, required=True, help="file descriptor of the inherited socket")
    serve(Connection(parser.parse_args().fd))


if __name__ == "__main__":
    main()
