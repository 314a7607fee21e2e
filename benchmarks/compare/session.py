"""One comparison: contenders take turns, round after round, and each turn is one run of the whole workload.

A contender is started when its first turn comes and ended after its last, so the many that run only once don't sit in
memory beside the others. Those that wait for their turn should sleep: what they take meanwhile is measured too.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.compare.contender import Contender, Request
from benchmarks.compare.host import Host, Lost, Missing, Run
from benchmarks.compare.plan import why_not


@dataclass(slots=True)
class Entry:
    """A contender's runs, and the largest share of a core that it took while others ran."""

    contender: Contender
    runs: list[Run] = field(default_factory=list)
    idle_share: float = 0.0
    host: Host | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """What ``compete`` leaves: those that ran, and why others did not."""

    entries: dict[str, Entry]
    left_out: dict[str, str]


def compete(
    contenders: list[Contender],
    folder: Path,
    requests: list[Request],
    scratch: Path,
    budget_s: float,
    pythons: Mapping[str, str],
) -> Session:
    """Run all in turn. ``pythons``: the interpreter of a contender that has its own.

    Everyone has one turn; a further round begins only if all of it fits into ``budget_s``. One that fails is left out;
    a wrong length is no failure but the end: it raises AssertionError.
    """
    left_out = {contender.name: reason for contender in contenders if (reason := why_not(contender))}
    entries = {one.name: Entry(one) for one in contenders if one.name not in left_out}
    started = time.perf_counter()
    with ExitStack() as stack:
        for number in range(max(one.rounds for one in contenders)):
            due = [entry for entry in entries.values() if number < entry.contender.rounds]
            expected_s = sum(entry.runs[-1].wall_s for entry in due if entry.runs)
            elapsed_s = time.perf_counter() - started
            if number and elapsed_s + expected_s > budget_s:
                _say(
                    f"no round {number + 1}: {elapsed_s:.0f} s gone, {expected_s:.0f} s needed, {budget_s:.0f} s given"
                )
                break
            for entry in due:
                name = entry.contender.name
                try:
                    if entry.host is None:
                        python = pythons.get(name, sys.executable)
                        entry.host = stack.enter_context(Host(entry.contender, folder, scratch / f"{name}.log", python))
                    _take_turn(entry, entries, requests[: entry.contender.requests])
                except (Missing, Lost) as reason:
                    _say(f"{name} is left out: {reason}")
                    left_out[name] = str(reason).splitlines()[-1]
                    del entries[name]
                if entry.host is not None and (number + 1 == entry.contender.rounds or name in left_out):
                    entry.host.close()
                    entry.host = None
    return Session(entries, left_out)


def _take_turn(entry: Entry, entries: Mapping[str, Entry], requests: list[Request]) -> None:
    """One run, with an eye on those that wait."""
    assert entry.host is not None
    waiting = [
        (other, other.host, other.host.cpu_s()) for other in entries.values() if other.host and other is not entry
    ]
    started = time.perf_counter()
    run = entry.host.run(requests)
    elapsed_s = time.perf_counter() - started
    for other, host, before_s in waiting:
        other.idle_share = max(other.idle_share, (host.cpu_s() - before_s) / elapsed_s)
    entry.runs.append(run)
    tokens = sum(wanted for _, wanted in requests)
    _say(
        f"{entry.contender.name:17} {run.wall_s:7.2f} s wall {run.cpu_s:7.2f} s CPU {tokens / run.wall_s:8.0f} tokens/s"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
