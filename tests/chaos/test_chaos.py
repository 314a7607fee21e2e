"""A farm that is broken on a schedule keeps its promises. ``make chaos`` does it for longer and prints figures.

A seed that fails prints its schedule and the folder where everything is kept; ``python -m tests.chaos --replay`` takes
the schedule from there.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.profiles import EXACT, MIXED, STALE, Profile
from tests.chaos.run import Verdict, run
from tests.chaos.schedule import draw
from tests.chaos.testbed import worker_names

pytestmark = pytest.mark.alone

SEED = 20261123


def carry_out(profile: Profile, folder: Path) -> Verdict:
    schedule = draw(SEED, profile.name, profile.rhythms, profile.seconds, worker_names(profile))
    verdict = run(profile, schedule, folder)
    assert not verdict.violations, verdict.explain()
    return verdict


@pytest.mark.timeout(240)
def test_nothing_is_lost_whatever_breaks(tmp_path: Path) -> None:
    """While workers, engines and the server are killed, frozen and drained and the network fails, every acknowledged
    job ends once, streams say what results say, nobody writes stale tokens, and nothing is left over."""
    found = carry_out(MIXED.resized(seconds=16), tmp_path / "mixed").figures
    assert sum(found.faults.values()) > 15, "the schedule was not carried out"
    assert found.resumed > 0, "nothing was interrupted"


@pytest.mark.timeout(240)
def test_who_was_cut_off_writes_nothing_stale(tmp_path: Path) -> None:
    """Workers that are cut off or frozen for longer than a lease, engines running or not, find their jobs elsewhere
    when they are back: not one of their tokens or outcomes gets in."""
    found = carry_out(STALE.resized(seconds=9), tmp_path / "stale").figures
    assert found.resumed > 0, "nobody was overtaken"


@pytest.mark.timeout(240)
def test_killed_jobs_say_what_undisturbed_ones_say(tmp_path: Path) -> None:
    """With the real tiny-bloom the texts of jobs whose workers and engines were killed are those of an undisturbed run,
    token for token, greedy and sampled."""
    found = carry_out(EXACT.resized(seconds=9), tmp_path / "exact").figures
    assert found.resumed > 0, "nothing was interrupted"
