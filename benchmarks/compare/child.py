"""``python -m benchmarks.compare.child RUNNER``: one engine in a process of its own, told what to do by JSON lines.

In: ``{"folder", "options"}``, then a list of requests for each run. Out: ``{"ready"}`` or ``{"missing"}``, then what
each run generated and its wall seconds. It ends when its input does.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import cast

from benchmarks.compare.contender import Runner


def main() -> None:
    """Load the engine and serve."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print what they like: standard output is for answers

    def say(**answer: object) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    try:
        runner = cast(Runner, importlib.import_module(f"benchmarks.compare.runners.{sys.argv[1]}"))
    except ModuleNotFoundError as error:
        say(missing=f"{error.name} is not installed")
        return
    task = json.loads(sys.stdin.readline())
    with runner.ready(Path(task["folder"]), task["options"]) as generate:
        say(ready=True)
        while line := sys.stdin.readline():
            requests = [(prompt, tokens) for prompt, tokens in json.loads(line)]
            started = time.perf_counter()
            generated = generate(requests)
            wall_s = time.perf_counter() - started
            say(wall_s=wall_s, outputs=generated.outputs, facts=generated.facts)


if __name__ == "__main__":
    main()
