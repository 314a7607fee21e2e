"""Compare engines on the benchmark's models: see ``benchmarks.compare``.

python -m benchmarks.compare                       both models, a few minutes each; figures go into benchmarks/results
python -m benchmarks.compare --quick               to see that it runs: 8 requests, one round, nothing is kept
python -m benchmarks.compare --only engine farm    some contenders; nothing is kept
python -m benchmarks.compare --docs                write the kept figures into docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import static
from benchmarks.compare import table
from benchmarks.compare.chart import write_chart
from benchmarks.compare.plan import CASES, Case, contenders
from benchmarks.compare.results import FOLDER, Record, read_all, record, write
from benchmarks.compare.session import compete
from benchmarks.floor import measure_apart
from benchmarks.workload import requests, save_bloom

QUICK_REQUESTS = 8


def main(arguments: list[str] | None = None) -> None:
    """Measure and print; the last line is one JSON object."""
    options = _parser().parse_args(arguments)
    if options.docs:
        _write_docs(options.results)
        return
    started = time.perf_counter()
    records = [measure(CASES[name], options) for name in options.model]
    print(f"all took {time.perf_counter() - started:.0f} s", file=sys.stderr)
    if not (options.quick or options.only):
        for found in records:
            print(f"kept in {write(found, options.results)}", file=sys.stderr)
    for found in records:
        print(f"\n{table.section(found, 'chart.svg')}\n")
    print(json.dumps({"benchmark": "compare", "commit": records[0]["commit"], "records": records}))


def measure(case: Case, options: argparse.Namespace) -> Record:
    """Make the model, have all take their turns, and judge what they said."""
    if options.quick:
        case = replace(case, requests=min(case.requests, QUICK_REQUESTS), naive_requests=None)
    wanted = [one for one in contenders(case, quick=options.quick) if not options.only or one.name in options.only]
    plan = ", ".join(f"{one.name} ×{one.rounds}" for one in wanted)
    print(f"{case.name}, {case.requests} requests, rounds: {plan}", file=sys.stderr)
    work = [(item.prompt, item.max_tokens) for item in requests(case.requests, case.config.vocab)]
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        folder = save_bloom(scratch / f"bloom-{case.name}", case.config, scale=case.scale)
        peaks = measure_apart()
        session = compete(wanted, folder, work, scratch, options.budget_s or case.budget_s, dict(options.python))
        load = functools.cache(lambda: static.load(folder))
        command = f"python -m benchmarks.compare --model {case.name}"
        return record(case, work, session, peaks, lambda tokens: static.top_gap(load(), tokens), command)


def _write_docs(folder: Path) -> None:
    """Draw a chart for each record, and put all figures into the docs."""
    for path, found in read_all(folder).items():
        write_chart(found, path)
    table.write_docs(folder=folder)


def _interpreter(text: str) -> tuple[str, str]:
    name, separator, path = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text}: give a contender and its interpreter, as vllm=/path/to/python")
    return name, path


def _parser() -> argparse.ArgumentParser:
    known = [one.name for case in CASES.values() for one in contenders(case)]
    parser = argparse.ArgumentParser("python -m benchmarks.compare", description="Compare engines on the same work.")
    add: Any = parser.add_argument
    add("--model", nargs="+", choices=CASES, default=["small", "560m"], help="which models; both unless given")
    add("--only", nargs="+", choices=dict.fromkeys(known), help="only these contenders; nothing is kept")
    add("--quick", action="store_true", help=f"{QUICK_REQUESTS} requests, one round of each; nothing is kept")
    add("--budget-s", type=float, help="begin no further round of a model that would not fit into so many seconds")
    add("--python", action="append", type=_interpreter, default=[], metavar="NAME=PATH", help="one's own interpreter")
    add("--results", type=Path, default=FOLDER, help="where figures are kept")
    add("--docs", action="store_true", help="write the kept figures into the docs, and measure nothing")
    return parser


if __name__ == "__main__":
    main()
