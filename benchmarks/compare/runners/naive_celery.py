"""The farm that one writes first: Celery, prefork, one prompt a task, ``generate`` in each child with one thread.

It runs on the same kind of server as ours. Each child loads the model for itself before the clock starts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.compare.contender import Generate, Generated, Options, Request
from benchmarks.compare.runners.naive_app import MODEL, SERVER, app, generate_one, is_loaded
from farm.local.server import EmbeddedServer

START_S = 240.0


@contextmanager
def ready(folder: Path, options: Options) -> Iterator[Generate]:
    """``processes``: how many children the worker has."""
    processes = int(options["processes"])
    with tempfile.TemporaryDirectory() as scratch:
        server = EmbeddedServer(Path(scratch))
        server.start()
        app.conf.update(broker_url=server.url, result_backend=server.url)
        arguments = ["worker", "--pool", "prefork", "--concurrency", str(processes), "--loglevel", "WARNING"]
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "benchmarks.compare.runners.naive_app", *arguments],
            env={**os.environ, SERVER: server.url, MODEL: str(folder), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
        )
        try:
            _wait_for_all(processes)
            yield _generate
        finally:
            worker.terminate()
            worker.wait()
            app.close()
            server.stop()


def _generate(requests: list[Request]) -> Generated:
    results = [generate_one.delay(prompt, tokens) for prompt, tokens in requests]
    return Generated([result.get() for result in results])


def _wait_for_all(processes: int) -> None:
    """Return when every child has its model: each answers with its process id."""
    deadline = time.monotonic() + START_S
    seen: set[int] = set()
    while len(seen) < processes:
        assert time.monotonic() < deadline, f"{len(seen)} of {processes} children were ready after {START_S:g} s"
        seen |= {answer.get(timeout=START_S) for answer in [is_loaded.delay() for _ in range(2 * processes)]}
