"""transformers' ``generate`` in static batches, each run to its longest member."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.compare.contender import Generate, Generated, Options, Outputs, Request
from benchmarks.static import load, run_static
from benchmarks.workload import Item


@contextmanager
def ready(folder: Path, options: Options) -> Iterator[Generate]:
    """``batch``: requests in one call. ``by_length``: those of similar length together, which needs to know them."""
    model, batch = load(folder), int(options["batch"])

    def generate(requests: list[Request]) -> Generated:
        items = [Item(prompt, tokens) for prompt, tokens in requests]
        order = list(range(len(items)))
        if options.get("by_length"):
            order.sort(key=lambda i: items[i].max_tokens)
        made = run_static(model, [items[i] for i in order], batch)
        outputs: Outputs = [[] for _ in items]
        for i, output in zip(order, made, strict=True):
            outputs[i] = output
        return Generated(outputs)

    generate([([5, 6, 7], 4)] * min(2, batch))
    yield generate
