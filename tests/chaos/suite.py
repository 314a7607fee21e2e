"""Everything that docs/guarantees.md reports, in one go: each figure with its target, as a table for that page."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.report import commit, machine
from tests.chaos import ledger
from tests.chaos.commands import SLOTS, TOKENS, measure
from tests.chaos.figures import Figures
from tests.chaos.profiles import ENGINES, EXACT, KILLS, MIXED, NETWORK, RECOVERY, SERVER, STALE, WASTE, Profile
from tests.chaos.report import DOCS, Row, section, with_figures
from tests.chaos.run import Verdict, run
from tests.chaos.schedule import draw
from tests.chaos.testbed import worker_names

OVERRUN_S = 2.0
WORKER_BACK_S = RECOVERY.lease_s + 2.0
ENGINE_BACK_S = 3.0
REPEATED = 0.02
SCHEDULES = 1_000
COMMANDS = 0.1
COUNT_S = 10.0
RUNS = (KILLS, SERVER, NETWORK, MIXED, STALE, RECOVERY, ENGINES, WASTE, EXACT)


def main(seed: int, folder: Path, *, jobs: int | None = None, keeps_all: bool = False, to_docs: bool = False) -> int:
    """Run all and print the table. Returns 0 if every target is reached and no promise broken, else 1.

    jobs: of the large runs.  keeps_all: keep what good runs leave too.  to_docs: write the table into the docs.
    """
    began = time.monotonic()
    profiles = [profile.resized(jobs=jobs if profile.load.jobs else None) for profile in RUNS]
    verdicts = {profile.name: _run(profile, seed, folder, keeps_all) for profile in profiles}
    rows = [*_rows(verdicts), _ledger_row(seed), _commands_row()]
    broken = [verdict for verdict in verdicts.values() if verdict.violations]
    seconds = time.monotonic() - began
    figures = section(rows, seed, seconds / 60)
    print(f"\n{figures}\n")
    if to_docs:
        DOCS.write_text(with_figures(DOCS.read_text(encoding="utf-8"), figures), encoding="utf-8")
    found = {
        "suite": "chaos",
        "seed": seed,
        "seconds": round(seconds),
        "commit": commit(),
        "machine": machine(),
        "violations": sum(len(verdict.violations) for verdict in broken),
        "missed": [row.what for row in rows if not row.is_kept],
    }
    print(json.dumps(found))
    return 1 if broken or found["missed"] else 0


def _run(profile: Profile, seed: int, folder: Path, keeps_all: bool) -> Verdict:
    """One profile; what it leaves is kept if it broke a promise."""
    print(f"\n{profile.name}: {profile.about}", flush=True)
    schedule = draw(seed, profile.name, profile.rhythms, profile.seconds, worker_names(profile))
    verdict = run(profile, schedule, folder / profile.name, lambda line: print(line, flush=True))
    if verdict.violations:
        print(verdict.explain(), file=sys.stderr, flush=True)
    elif not keeps_all:
        shutil.rmtree(verdict.folder)
        with contextlib.suppress(OSError):  # others are still in it
            folder.rmdir()
    return verdict


def _rows(verdicts: dict[str, Verdict]) -> Iterator[Row]:
    of = {name: verdict.figures for name, verdict in verdicts.items()}
    kills, server, network, mixed = of["kills"], of["server"], of["network"], of["mixed"]
    yield Row(
        f"{kills.acknowledged:,} jobs, 3 workers, a random kill -9 every 2 s",
        "0 lost, 0 duplicated",
        f"{_outcome(kills)}; {_faults(kills, '-worker')} kills",
        not (kills.lost or kills.duplicated),
    )
    yield Row(
        "the same and the server's kill -9 every 20 s, `appendfsync always`",
        "0 acknowledged jobs lost",
        f"{_outcome(server)}; {_faults(server, 'kill-server')} kills of the server",
        not (server.lost or server.duplicated),
    )
    overrun = network.worst_overrun_s or 0.0
    yield Row(
        "the same and a cut, stall or lost reply every 3 s",
        f"0 duplicated; no call above {OVERRUN_S:g} s + its own timeout",
        f"{_outcome(network)}; worst call {overrun:.1f} s above its timeout",
        not (network.lost or network.duplicated) and overrun <= OVERRUN_S,
    )
    yield Row(
        "everything at once: also freezes, drains, engines; `durability=fsync`",
        "0 lost, 0 duplicated",
        f"{_outcome(mixed)}; {sum(mixed.faults.values())} faults in {mixed.seconds:.0f} s",
        not (mixed.lost or mixed.duplicated),
    )
    stale = of["stale"]
    yield Row(
        "workers cut off or frozen for longer than a lease, engines running on",
        "nothing stale written",
        f"{_outcome(stale)}; {stale.resumed} of {stale.succeeded} jobs changed hands",
        not (stale.lost or stale.duplicated) and stale.resumed > 0,
    )
    back, samples = of["recovery"].worker_recovery_p99_s, of["recovery"].worker_recoveries
    yield Row(
        "a worker's kill -9 to its jobs running again, elsewhere",
        f"p99 <= lease + 2 s ({WORKER_BACK_S:g} s)",
        f"{back:.1f} s ({samples} jobs)" if back is not None else "nothing measured",
        back is not None and back <= WORKER_BACK_S,
    )
    back, samples, load_s = of["engines"].engine_recovery_p99_s, of["engines"].engine_recoveries, of["engines"].load_s
    yield Row(
        "an engine's kill to its jobs running again, on the same and only worker",
        f"p99 <= {ENGINE_BACK_S:g} s + model load",
        f"{back:.1f} s, load {load_s:.1f} s ({samples} jobs)" if back is not None else "nothing measured",
        back is not None and back <= ENGINE_BACK_S + load_s,
    )
    repeated = of["waste"].repeated
    yield Row(
        "tokens made twice, one kill -9 every 10 s",
        f"<= {REPEATED:.0%}",
        f"{repeated:.2%} of {of['waste'].tokens:,}" if repeated is not None else "nothing measured",
        repeated is not None and repeated <= REPEATED,
    )
    exact = of["exact"]
    yield Row(
        "tiny-bloom, greedy and sampled: texts that differ from an undisturbed run's",
        "0",
        f"{exact.duplicated} of {exact.succeeded:,}, {exact.resumed} of them resumed",
        not (exact.lost or exact.duplicated) and exact.resumed > 0,
    )


def _outcome(found: Figures) -> str:
    given_up = f", {found.dead} given up" if found.dead else ""
    return f"{found.lost} lost, {found.duplicated} duplicated{given_up}"


def _faults(found: Figures, kind: str) -> int:
    return sum(count for name, count in found.faults.items() if name.endswith(kind))


def _ledger_row(seed: int) -> Row:
    print("\nledger: its scripts alone, in any order", flush=True)
    what, target = f"{SCHEDULES:,} seeded fault schedules of the ledger's state machine", "invariants hold"
    try:
        found = ledger.explore(SCHEDULES, seed)
    except AssertionError as error:
        print(error, file=sys.stderr, flush=True)
        return Row(what, target, "broken", False)
    return Row(what, target, f"hold: {found.schedules:,} schedules, {found.steps:,} steps", True)


def _commands_row() -> Row:
    print("\ncommands: of one busy worker", flush=True)
    cost = measure(COUNT_S)
    return Row(
        f"one worker's Redis commands per token at {SLOTS} slots, {TOKENS} tokens a job",
        f"<= {COMMANDS:g}",
        f"{cost.per_token:.3f}",
        cost.per_token <= COMMANDS,
    )
