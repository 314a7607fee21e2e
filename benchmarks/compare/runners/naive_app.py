"""The Celery app of the naive farm: what its worker imports."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path
from typing import Any

from celery import Celery

SERVER = "NAIVE_SERVER"
MODEL = "NAIVE_MODEL"

app = Celery("naive", set_as_current=False)
app.conf.update(worker_prefetch_multiplier=1, task_acks_late=True, broker_connection_retry_on_startup=True)
if SERVER in os.environ:
    app.conf.update(broker_url=os.environ[SERVER], result_backend=os.environ[SERVER])


@app.task(name="naive.generate")
def generate_one(prompt: list[int], tokens: int) -> list[int]:
    """The greedy continuation of a prompt, exactly so many tokens."""
    from benchmarks.static import run_static  # in the child: torch does not survive a fork
    from benchmarks.workload import Item

    return run_static(_model(), [Item(prompt, tokens)], 1)[0]


@app.task(name="naive.is_loaded")
def is_loaded() -> int:
    """Load the model if need be; returns the child's process id. Takes a moment, so that every child gets one."""
    _model()
    time.sleep(0.2)
    return os.getpid()


@functools.cache
def _model() -> Any:
    import torch

    from benchmarks.static import load

    torch.set_num_threads(1)
    return load(Path(os.environ[MODEL]))
