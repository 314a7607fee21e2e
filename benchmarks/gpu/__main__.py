"""Measure Bloom on a GPU: see ``benchmarks.gpu``.

python -m benchmarks.gpu                               Bloom-7B1 in bfloat16 on cuda:0, in under ten minutes
python -m benchmarks.gpu --farm                        through the whole farm as well
python -m benchmarks.gpu --device cpu --model small    to see that it runs, in a minute
python -m benchmarks.gpu --docs                        write the kept figures into docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from benchmarks import environment
from benchmarks.gpu import baseline, page, parts
from benchmarks.gpu.device import measure_floors, missing
from benchmarks.gpu.model import MODELS, checkpoint_without_weights, open_random, transformers_model
from benchmarks.gpu.record import begin, judge, keep, path_of
from benchmarks.workload import requests
from farm.settings import EngineSettings, ModelSettings
from workers.engine.bloom import Bloom
from workers.engine.devices import named_devices
from workers.engine.module_bytes import layer_token_bytes
from workers.engine.planner import plan_shards

EXIT_NO_DEVICE = 2
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SIZES: dict[str, dict[str, Any]] = {
    "gpu": {
        "dtype": "bfloat16",
        "batch": [1, 2, 4, 8, 16, 32, 64, 128],
        "context": 512,
        "steps": 64,
        "prefill": 1920,
        "requests": 128,
    },
    "cpu": {"dtype": "float32", "batch": [1, 2, 4, 8], "context": 64, "steps": 8, "prefill": 256, "requests": 16},
}
"""What is measured unless somebody says otherwise."""
NEEDED_BY_FARM = ("celery", "redis", "kombu")
RESERVED_S = 0.1
"""The share of the budget in which no further part is begun."""
KV_SHARE = 0.7
"""Of the room that the weights leave, what keys and values may take: long prefills want the rest to compute in."""
SLACK = 96
"""Tokens that a sequence of a decode batch may get beyond its context until all of the batch are computed."""


class Session:
    """A run: what it measures, how much time it has left, and what it has found."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.config = MODELS[options.model]
        self.dtype = DTYPES[options.dtype]
        self.items = requests(options.requests, self.config.vocab)
        self.found = begin(options.model, self.config, self.dtype, options.device, self.items)
        self.path: Path = options.out or path_of(self.found)
        self._started = time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._started

    def has_time(self) -> bool:
        """Whether a further part may be begun."""
        return bool(self.elapsed_s < self.options.budget_s * (1 - RESERVED_S))

    def begin(self, part: str) -> bool:
        """Announce a part. False, and it is left out, if there is no time for it."""
        if not self.has_time():
            self.found["left_out"][part] = f"the {self.options.budget_s:g} s were over"
            return False
        print(f"{self.elapsed_s:6.1f} s  {part}", file=sys.stderr)
        return True

    def keep(self, part: str, figures: Any) -> None:
        """Keep what a part gave, in the record and in its file."""
        self.found[part] = figures
        judge(self.found)
        keep(self.found, self.path)

    def settings(self) -> EngineSettings:
        """The engine's: slots for the largest batch, room for all of them, prompts in large pieces."""
        options = self.options
        longest = max(options.context + SLACK + options.steps, options.prefill + 16, 400)
        slots = max(options.batch)
        device = named_devices([options.device])
        plan = plan_shards(self.config, options.dtype, device, context=longest, slots=slots)
        token_bytes = self.config.layers * layer_token_bytes(self.config, options.dtype)
        # A CPU gives each sequence a block of a power of two tokens.
        wanted = slots * (1 << (longest - 1).bit_length()) * token_bytes
        room = plan.stages[0].kv_bytes
        return EngineSettings(
            devices=[options.device],
            max_slots=slots,
            max_context=longest,
            kv_bytes=int(min(wanted, KV_SHARE * room)),
            kv_layout="paged",
            prefill_budget=options.prefill,
            prefix_caching=False,
        )


def main(arguments: list[str] | None = None) -> None:
    """Measure and print; the last line is one JSON object. Exits with 2 where the device is missing."""
    options = _parser().parse_args(arguments)
    for name, value in SIZES["cpu" if options.device == "cpu" else "gpu"].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.docs:
        page.write_docs()
        return
    if why := missing(options.device):
        sys.stderr.write(f"benchmarks.gpu: {why}\n")
        raise SystemExit(EXIT_NO_DEVICE)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    session = Session(options)
    settings = session.settings()
    if session.begin("floors"):
        session.keep("floors", measure_floors(options.device, session.dtype))
        _free()
    _measure_engine(session, settings)
    _free()
    _measure_transformers(session)
    _free()
    if options.farm:
        _measure_farm(session, settings)
    session.keep("seconds", round(session.elapsed_s, 1))
    print("\n".join(page.facts(session.found)), file=sys.stderr)
    print(f"kept in {session.path}", file=sys.stderr)
    print(json.dumps(session.found))


def _measure_engine(session: Session, settings: EngineSettings) -> None:
    options, config = session.options, session.config
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = checkpoint_without_weights(Path(folder), config)
        if not session.begin("the engine's model"):
            return
        model = Bloom(ModelSettings(id=folder, dtype=options.dtype), settings, checkpoint, open_random)
        session.keep("kernels", model.ready.kernels)
        session.keep("load_s", model.ready.load_s)
        rows: list[dict[str, Any]] = []
        for batch in options.batch:
            part = f"decode, batch {batch}"
            if batch * (options.context + SLACK + options.steps) > model.ready.kv_tokens:
                session.found["left_out"][part] = f"{model.ready.kv_tokens:,} tokens fit the device"
            elif session.begin(part):
                rows.append(
                    parts.decode(
                        model, config, session.dtype.itemsize, batch, options.context, options.steps, options.prefill
                    )
                )
                session.keep("decode", rows)
        if session.begin("prefill"):
            session.keep("prefill", parts.prefill(model, config, options.prefill, options.prefill))
        if session.begin("the workload"):
            session.keep("engine", parts.workload(model, session.items, options.prefill))


def _measure_transformers(session: Session) -> None:
    options, config = session.options, session.config
    if not session.begin("transformers' model"):
        return
    model = transformers_model(config, session.dtype, options.device)
    if session.begin("transformers, one sequence"):
        found = baseline.one(model, config, options.device, options.context, options.steps)
        session.keep("generate_one", found)
    if session.begin("transformers, static batches"):
        session.keep("generate_static_16", baseline.static(model, session.items, options.device, session.has_time))


def _measure_farm(session: Session, settings: EngineSettings) -> None:
    lacking = [name for name in NEEDED_BY_FARM if importlib.util.find_spec(name) is None]
    if lacking:
        session.found["left_out"]["farm"] = f"{', '.join(lacking)} not installed"
    elif session.begin("the whole farm"):
        # Here because the rest runs without Celery and Redis.
        from benchmarks.gpu import through_farm

        options = session.options
        found = through_farm.measure(session.config, session.dtype, options.device, settings, session.items)
        session.keep("farm", found)


def _free() -> None:
    """Give the device back what the last part's model held."""
    gc.collect()
    torch.cuda.empty_cache()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description="Measure Bloom on a GPU.")
    add: Any = parser.add_argument
    add("--model", choices=MODELS, default="7b1")
    add("--device", default="cuda:0", help="cuda:N, or cpu to see that it runs")
    add("--dtype", choices=DTYPES, help="bfloat16 on a GPU, float32 on a CPU")
    add("--batch", type=int, nargs="+", help="sequences that decode at once; 1 to 128 on a GPU")
    add("--context", type=int, help="tokens of a decoding sequence; 512 on a GPU")
    add("--steps", type=int, help="decode steps that are timed; 64 on a GPU")
    add("--prefill", type=int, help="tokens of the prompt whose prefill is timed, computed in one step; 1,920 on a GPU")
    add("--requests", type=int, help="of the heavy-tailed workload; 128 on a GPU")
    add("--budget-s", type=float, default=540.0, help="begin no further part once nine tenths of this are over")
    add("--farm", action="store_true", help="measure the workload through the whole farm, too")
    add("--out", type=Path, help="where figures are kept: benchmarks/results for a GPU, build for a CPU")
    add("--docs", action="store_true", help="write the kept figures of GPUs into the docs, and measure nothing")
    return parser


if __name__ == "__main__":
    environment.enter("benchmarks.gpu")
    main()
