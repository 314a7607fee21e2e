"""What ``farm top`` draws: one screen of a terminal, as much as there is room for. Knows no server and no keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from farm.cli.farm_words import ENDS, ended, put_back, worker_state
from farm.cli.output import clock, duration
from farm.contracts import PRIORITIES
from farm.ledger.glance import Ended, Glance, Paces
from farm.ledger.overview import ModelLoad, WorkerView

BARS = "▁▂▃▄▅▆▇█"
SLOT_CELLS = 10
WIDE = 110  # columns from which there is more to see
NARROW = 80  # columns below which there is less
LOW = 20  # lines below which not all may fit


@dataclass(frozen=True, slots=True)
class Screen:
    """All that one picture is made of. ``tokens`` and ``waiting`` are earlier readings, the latest last.

    problem: why nothing new came since; empty when all is well.
    """

    where: str
    seen: Glance
    paces: Paces
    tokens: Sequence[float]
    waiting: Sequence[float]
    problem: str = ""
    is_live: bool = True


def draw(screen: Screen, width: int, height: int) -> RenderableType:
    """A picture of ``height`` lines at the most."""
    farm = screen.seen.farm
    is_low = height < LOW and bool(screen.problem)  # there the last line may be cut off
    head = [
        _keys(screen) if is_low else _head(screen, width),
        _trend("tokens/s", screen.paces.tokens_per_s, screen.tokens, width),
    ]
    head += [_trend("waiting", screen.seen.waiting, screen.waiting, width), Text()]
    foot = [Text(), *_waste(screen, width), _keys(screen)]
    room = height - len(head) - len(foot)
    # A heading and an empty line for each table; what is left over is for the jobs.
    models = farm.models[: max(1, (room - 7) // 3)]
    workers = farm.workers[: max(2, room - len(models) - 7)]
    hidden = len(farm.workers) - len(workers)
    parts: list[RenderableType] = [*head, _models(models, width), Text()]
    parts.append(_workers(workers, screen.paces, width) if workers else _no_workers())
    if hidden:
        parts.append(Text(f"… and {hidden:,} more workers", style="dim"))
    room -= len(models) + 2 + max(1, len(workers) + 1) + bool(hidden) + 1
    parts += [Text(), *_jobs(screen.seen, room, width)]
    return Group(*parts, *foot)


def sparkline(values: Sequence[float], cells: int) -> str:
    """The latest values as bars, the greatest of them full height."""
    shown = list(values)[-cells:] if cells > 0 else []
    most = max(shown, default=0.0)
    if most <= 0:
        return BARS[0] * len(shown)
    return "".join(BARS[min(len(BARS) - 1, int(value / most * (len(BARS) - 0.01)))] for value in shown)


def _head(screen: Screen, width: int) -> Text:
    line = Text.assemble(("Bloomfarm", "bold"), f" at {screen.where}  ", (clock(screen.seen.at), "dim"))
    pace = f"{screen.paces.jobs_per_s:,.1f} jobs/s"
    if (room := width - line.cell_len) > len(pace):
        line.append(pace.rjust(room))
    line.truncate(width)
    return line


def _trend(name: str, value: float, history: Sequence[float], width: int) -> Text:
    label = f"{name:9}{value:>9,.0f}  "
    return Text.assemble((label, "bold"), (sparkline(history, width - len(label)), "cyan"))


def _models(models: Sequence[ModelLoad], width: int) -> Table:
    is_wide, is_narrow = width >= WIDE, width < NARROW
    waiting, more = ("waiting",) if is_narrow else (*PRIORITIES, "delayed", "sent"), ("jobs/s",) if is_wide else ()
    numbers = (*waiting, "running", "slots", *more, "empty in")
    shown = _table("model", *numbers, right=numbers)
    for load in models:
        eta = duration(load.eta_s) if load.waiting else "-"
        apart = [*(load.queued[level] for level in PRIORITIES), load.delayed, load.dispatched]
        counts = [*([load.waiting] if is_narrow else apart), load.running, load.slots]
        paces = [f"{load.per_s:.1f}"] if is_wide else []
        shown.add_row(Text(load.model), *(f"{count:,}" for count in counts), *paces, eta)
    return shown


def _workers(workers: Sequence[WorkerView], paces: Paces, width: int) -> Table:
    is_wide = width >= WIDE
    if width < NARROW:
        return _workers_in_brief(workers, paces)
    more = ("model", "tokens") if is_wide else ()
    shown = _table("worker", "state", "slots", "", "tokens/s", *more, "up", right=("", "tokens/s", "tokens", "up"))
    for worker in workers:
        is_model = worker.role == "model"
        share = min(1.0, worker.held / worker.slots) if worker.slots else 0.0
        full = round(share * SLOT_CELLS)
        bar = Text("█" * full, style="cyan").append("░" * (SLOT_CELLS - full), style="dim")
        extra: list[RenderableType] = (
            [Text(worker.model or "-"), f"{worker.tokens:,}" if is_model else "-"] if is_wide else []
        )
        shown.add_row(
            Text(worker.name),
            worker_state(worker),
            bar if is_model else Text(worker.role, style="dim"),
            f"{worker.held}/{worker.slots}" if is_model else "",
            _pace(worker, paces),
            *extra,
            duration(worker.up_s),
        )
    return shown


def _workers_in_brief(workers: Sequence[WorkerView], paces: Paces) -> Table:
    shown = _table("worker", "state", "slots", "tokens/s", right=("slots", "tokens/s"))
    for worker in workers:
        slots = f"{worker.held}/{worker.slots}" if worker.role == "model" else "-"
        shown.add_row(Text(worker.name), worker_state(worker), slots, _pace(worker, paces))
    return shown


def _pace(worker: WorkerView, paces: Paces) -> str:
    return f"{paces.workers.get(worker.id, 0):,.0f}" if worker.role == "model" else "-"


def _no_workers() -> Text:
    return Text("No workers: what is queued waits. Start one: farm worker", style="yellow")


def _jobs(seen: Glance, room: int, width: int) -> list[RenderableType]:
    """The jobs that ended last, as many as ``room`` lines hold with their heading."""
    if not seen.recent:
        words = "No job has ended yet." if seen.farm.totals.get("submitted") else "No jobs yet. In another terminal:"
        lines: list[RenderableType] = [Text(words)]
        if not seen.farm.totals.get("submitted"):
            lines.append(Text('  farm submit "Once upon a time" --stream', style="bold", no_wrap=True))
        return lines
    if room < 2:
        return []
    names = ["ended last", "state", "tokens", "queued", "ran", "worker", "tenant", "priority", "model"]
    del names[len(names) if width >= WIDE else 6 if width >= NARROW else 3 :]
    shown = _table(*names, right=("tokens", "queued", "ran"))
    for job in seen.recent[: room - 1]:
        shown.add_row(*_job(job)[: len(names)])
    return [shown]


def _job(job: Ended) -> list[RenderableType]:
    times = (duration(job.queued_s), duration(job.run_s))
    state = Text(job.state, style=ENDS.get(job.state, ""))
    whose = (Text(job.worker or "-"), Text(job.tenant), job.priority, Text(job.model))
    return [Text(job.id), state, f"{job.tokens:,}", *times, *whose]


def _waste(screen: Screen, width: int) -> list[RenderableType]:
    seen, farm = screen.seen, screen.seen.farm
    lines = [
        Text.assemble(("ended     ", "bold"), ended(farm.totals)),
        Text.assemble(("put back  ", "bold"), put_back(farm.released)),
        Text.assemble(("today     ", "bold"), f"{seen.tokens_today:,} tokens, of prompts and completions"),
    ]
    if seen.resumed_tokens:
        lines[1].append(f"; {seen.resumed_tokens:,} tokens were kept")
    if seen.dead:
        lines[0].append(f"; {seen.dead:,} dead to look at: farm dead list", style="red")
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return [*lines]


def _keys(screen: Screen) -> Text:
    if screen.problem:
        return Text(screen.problem, style="bold red", overflow="ellipsis", no_wrap=True)
    return Text("q quits" if screen.is_live else "", style="dim")


def _table(*columns: str, right: tuple[str, ...]) -> Table:
    """A table whose rows are one line each, however narrow the terminal."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        is_number = column in right
        made.add_column(column, justify="right" if is_number else "left", no_wrap=True, overflow="ellipsis")
    return made
