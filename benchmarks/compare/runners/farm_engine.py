"""Our engine alone, without Celery and Redis: the loop of a worker's engine process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.compare.contender import Generate, Generated, Options, Request
from benchmarks.engine import run_engine
from benchmarks.workload import Item
from farm.settings import load_settings
from workers.engine.bloom import Bloom


@contextmanager
def ready(folder: Path, _: Options) -> Iterator[Generate]:
    """Default settings, but for those that the environment brings."""
    settings = load_settings(model={"id": str(folder), "dtype": "float32"})
    model = Bloom(settings.model, settings.engine)

    def generate(requests: list[Request]) -> Generated:
        items = [Item(prompt, tokens) for prompt, tokens in requests]
        outputs, steps = run_engine(model, items, settings.engine.prefill_budget)
        return Generated(outputs, {"steps": steps})

    generate([([5, 6, 7], 4)] * 8)
    yield generate
