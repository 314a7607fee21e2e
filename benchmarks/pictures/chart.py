"""A run as a chart in SVG, readable on light and dark pages: tokens per second of each worker, and the queue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.pictures.run import VICTIM, Seen

INK, QUEUE, KILL = "#7a7a7a", "#5b7fb5", "#b5433a"
WORKERS = {"local-1": "#2f7d4f", "local-2": "#8fc1a2"}
SPAN_S = 1.0  # over how long a pace is taken
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bloomfarm",
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def write_chart(seen: Seen, path: Path) -> None:
    """Draw a run."""
    times = [sample.at_s for sample in seen.samples]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 5))
        paces, queue = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        rates = [_rates(seen, name) for name in WORKERS]
        paces.stackplot(times, *rates, labels=list(WORKERS), colors=list(WORKERS.values()))
        paces.set_ylabel("tokens/s")
        paces.set_ylim(bottom=0)
        queue.plot(times, [sample.waiting for sample in seen.samples], color=QUEUE, label="waiting")
        queue.plot(times, [sample.running for sample in seen.samples], color=INK, label="running")
        queue.set_ylabel("jobs")
        queue.set_xlabel("seconds")
        queue.set_ylim(bottom=0)
        for axes in (paces, queue):
            axes.axvline(seen.killed_at_s, color=KILL, linestyle="--", linewidth=1)
            axes.margins(x=0)
            axes.yaxis.set_major_formatter("{x:,.0f}")
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, labelcolor=INK)
        place = (seen.killed_at_s, 0.85 * queue.get_ylim()[1])
        queue.annotate(f"kill -9 {VICTIM}", place, (6, 0), textcoords="offset points", color=KILL)
        told = seen.figures
        words = f"{told['jobs']:,} jobs, one of two workers killed: {told['succeeded']:,} answered,\n"
        words += f"{told['interrupted']} of them interrupted and resumed with {told['resumed_tokens']:,} tokens"
        paces.set_title(words, loc="left", fontsize=11)
        figure.tight_layout()
        figure.savefig(path, transparent=True, metadata={"Date": None})


def _rates(seen: Seen, name: str) -> list[float]:
    """A worker's tokens per second at each reading, over the last second."""
    samples, rates = seen.samples, []
    first = 0
    for last, sample in enumerate(samples):
        while first < last - 1 and samples[first + 1].at_s <= sample.at_s - SPAN_S:
            first += 1
        took_s = sample.at_s - samples[first].at_s
        written = sample.tokens.get(name, 0) - samples[first].tokens.get(name, 0)
        rates.append(written / took_s if took_s > 0 else 0.0)
    return rates
