"""``python -m tests.chaos``: break a farm on a schedule, and see whether it keeps its promises."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.chaos import suite
from tests.chaos.profiles import PROFILES, Profile
from tests.chaos.run import Verdict, judge, run
from tests.chaos.schedule import Schedule, draw
from tests.chaos.testbed import worker_names

EPILOG = "profiles:\n" + "\n".join(f"  {name:<10} {profile.about}" for name, profile in PROFILES.items())


def main(argv: list[str] | None = None) -> int:
    """Run, print figures, and return 0 if every promise was kept, 1 if not, 2 for a file that is no run of ours."""
    args = _arguments(argv)
    if args.all:
        return suite.main(
            _seed(args), _folder(args), jobs=args.jobs, keeps_all=args.keep is not None, to_docs=args.docs
        )
    try:
        if args.check:
            return _report(judge(args.check))
        schedule = _schedule(args)
        profile = _profile(schedule.profile).resized(seconds=schedule.seconds, jobs=args.jobs)
    except (OSError, ValueError) as error:
        print(f"python -m tests.chaos: {error}", file=sys.stderr)
        return 2
    if args.dry_run:
        print(schedule)
        return 0
    folder = _folder(args)
    print(f"{profile.about}; seed {schedule.seed}, {len(schedule.faults)} faults at most", flush=True)
    verdict = run(profile, schedule, folder, lambda line: print(line, flush=True))
    if not verdict.violations and args.keep is None:
        shutil.rmtree(folder)
    return _report(verdict)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__.partition(": ")[2],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--profile", choices=PROFILES, default="mixed", help="what runs and what goes wrong (mixed)")
    what.add_argument("--all", action="store_true", help="run what docs/guarantees.md reports, and print its table")
    what.add_argument("--replay", type=Path, metavar="FILE", help="carry out this schedule.json")
    what.add_argument("--check", type=Path, metavar="DIR", help="judge a run that was kept, again; nothing is run")
    add("--seed", type=int, help="draw the schedule from this number; a random one unless given")
    add("--seconds", type=float, help="how long faults go on at most; the profile's own unless given")
    add("--jobs", type=int, help="end when so many jobs are over; with --all, in its large runs")
    add("--keep", type=Path, metavar="DIR", help="keep everything here, also when all went well")
    add("--docs", action="store_true", help="with --all: write the table into docs/guarantees.md")
    add("--dry-run", action="store_true", help="print the schedule and do nothing")
    args = parser.parse_args(argv)
    if args.keep and args.keep.exists() and any(args.keep.iterdir()):
        parser.error(f"--keep: {args.keep} is not empty; name another folder")
    return args


def _seed(args: argparse.Namespace) -> int:
    return random.randrange(1 << 32) if args.seed is None else args.seed


def _folder(args: argparse.Namespace) -> Path:
    return args.keep or Path(tempfile.mkdtemp(prefix="farm-chaos-"))


def _schedule(args: argparse.Namespace) -> Schedule:
    if args.replay:
        return Schedule.from_json(args.replay.read_text(encoding="utf-8"))
    profile = PROFILES[args.profile].resized(seconds=args.seconds)
    return draw(_seed(args), profile.name, profile.rhythms, profile.seconds, worker_names(profile))


def _profile(name: str) -> Profile:
    if name not in PROFILES:
        raise ValueError(f"no schedule: {name} is no profile")
    return PROFILES[name]


def _report(verdict: Verdict) -> int:
    if verdict.violations:
        print(verdict.explain(), file=sys.stderr)
    found = asdict(verdict.figures)
    for name, value in found.items():
        print(f"  {name:<24} {value:.4g}" if isinstance(value, float) else f"  {name:<24} {value}")
    what = {"profile": verdict.schedule.profile, "seed": verdict.schedule.seed}
    print(json.dumps({**what, "violations": len(verdict.violations), **found}))
    return 1 if verdict.violations else 0


if __name__ == "__main__":
    sys.exit(main())
