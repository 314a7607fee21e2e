"""A run to look at: jobs for two workers, one of which is killed midway; what the ledger said four times a second."""

from __future__ import annotations

import io
import json
import random
import re
import signal
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI

from farm import Farm
from farm.cli.top_page import Screen, draw
from farm.ledger.glance import Glance, Paces, glance
from farm.ledger.jobs import Jobs
from farm.settings import load_settings
from tests.commands import Up

EVERY_S = 0.25
KILL_AT = 0.35  # share of the jobs that have ended by then
DRAWN_AT = 0.2
COLUMNS, LINES = 88, 24
PROMPTS = Path("workers/tiny_bloom/prompts.jsonl")
VICTIM = "local-1"
SEED = 7


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading. ``tokens`` were written by each worker so far, all its lives together."""

    at_s: float
    tokens: dict[str, int]
    waiting: int
    running: int


@dataclass
class Seen:
    """The run: readings from its first submission on, when the worker was killed, and how it ended."""

    samples: list[Sample] = field(default_factory=list)
    killed_at_s: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)


def run(up: Up, count: int, picture: Path) -> Seen:
    """Run ``count`` jobs, kill a worker, draw ``farm top`` before that. Returns when all have ended."""
    settings = load_settings({}, redis={"url": up.url}, local={"state_dir": up.state_dir})
    lines = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    chance = random.Random(SEED)
    requests = [
        {
            "prompt": lines[number % len(lines)]["prompt"],
            "max_tokens": chance.randint(200, 500),
            "priority": chance.choices(("high", "normal", "low"), (1, 7, 2))[0],
        }
        for number in range(count)
    ]
    seen, jobs, lives = Seen(), Jobs(settings), _Lives()
    paces, waiting, tokens = Paces(), deque[float](maxlen=400), deque[float](maxlen=400)
    began = time.monotonic()
    with Farm(settings=settings) as farm:
        ids = [job.id for job in farm.submit_many(requests, ignore_eos=True)]
    while True:
        found = glance(jobs, recent=20)
        sample = Sample(time.monotonic() - began, lives.tokens(found), found.waiting, _running(found))
        seen.samples.append(sample)
        paces.see(found)
        tokens.append(paces.tokens_per_s)
        waiting.append(found.waiting)
        if not picture.exists() or (not seen.killed_at_s and found.ended >= DRAWN_AT * count):
            screen = Screen(jobs.where, found, paces, tokens, waiting)
            picture.write_text(terminal(screen), encoding="utf-8")
        if not seen.killed_at_s and found.ended >= KILL_AT * count:
            psutil.Process(up.ready["pids"][VICTIM]).send_signal(signal.SIGKILL)
            seen.killed_at_s = time.monotonic() - began
        if found.ended >= count:
            break
        time.sleep(EVERY_S)
    views = [view for view in jobs.views(ids) if view is not None]
    seen.figures = {
        "jobs": count,
        "succeeded": sum(view.state == "succeeded" for view in views),
        "tokens": sum(view.usage.completion_tokens for view in views),
        "interrupted": sum(view.attempt > 1 for view in views),
        "resumed_tokens": sum(view.usage.resumed_tokens for view in views),
        "took_s": round(seen.samples[-1].at_s, 1),
        "killed_at_s": round(seen.killed_at_s, 1),
        "back_after_s": back_after_s(seen),
    }
    jobs.client.close()
    return seen


def back_after_s(seen: Seen) -> float | None:
    """Seconds from the kill until the killed worker writes tokens again, a new process under its name."""
    before = next(s.tokens.get(VICTIM, 0) for s in reversed(seen.samples) if s.at_s <= seen.killed_at_s)
    # What the ledger had of it between the last reading and the kill is no sign of life.
    later = [s for s in seen.samples if s.at_s > seen.killed_at_s + 2 * EVERY_S]
    still = later[0].tokens.get(VICTIM, before) if later else before
    return next((round(s.at_s - seen.killed_at_s, 1) for s in later if s.tokens.get(VICTIM, 0) > still), None)


def terminal(screen: Screen) -> str:
    """``farm top`` as an SVG that asks no other host for a font."""
    console = Console(record=True, width=COLUMNS, height=LINES, file=io.StringIO(), force_terminal=True)
    console.print(draw(screen, COLUMNS, LINES))
    drawn = console.export_svg(title="farm top", theme=DIMMED_MONOKAI, unique_id="top")
    return re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL)


class _Lives:
    """Adds up what a worker wrote in all its lives: each has a counter of its own."""

    def __init__(self) -> None:
        self._written: dict[str, tuple[str, int]] = {}

    def tokens(self, found: Glance) -> dict[str, int]:
        for worker in found.farm.workers:
            if worker.role == "model":
                self._written[worker.id] = (worker.name, worker.tokens)
        sums: dict[str, int] = {}
        for name, written in self._written.values():
            sums[name] = sums.get(name, 0) + written
        return sums


def _running(found: Glance) -> int:
    return sum(load.running for load in found.farm.models)
