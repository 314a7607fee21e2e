"""Schedules: drawn from a seed, read from a file, always the same."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.profiles import PROFILES, Profile
from tests.chaos.schedule import CLIENTS, KINDS, ON_NETWORK, ON_PROXY, ON_SCRIPT, SERVER, Schedule, draw
from tests.chaos.testbed import worker_names

pytestmark = pytest.mark.fast

profiles = st.sampled_from(sorted(PROFILES.values(), key=lambda profile: profile.name))
seeds = st.integers(0, 1 << 32)


def drawn(seed: int, profile: Profile, seconds: float) -> Schedule:
    return draw(seed, profile.name, profile.rhythms, seconds, worker_names(profile))


@given(seed=seeds, profile=profiles)
def test_a_seed_always_gives_the_same_schedule(seed: int, profile: Profile) -> None:
    """What a seed gave once it gives again, and another seed gives something else."""
    one = drawn(seed, profile, 60)
    assert drawn(seed, profile, 60) == one
    assert drawn(seed + 1, profile, 60).faults != one.faults


@given(seed=seeds, profile=profiles)
def test_a_schedule_survives_its_file(seed: int, profile: Profile) -> None:
    """A schedule that was written and read is the same one, so a run can be repeated."""
    schedule = drawn(seed, profile, 45)
    text = schedule.to_json()
    assert Schedule.from_json(text) == schedule
    assert len(text.splitlines()) == len(schedule.faults) + 2, "one line a fault, so that a person may take some out"


@given(seed=seeds, profile=profiles, seconds=st.floats(10, 300))
def test_faults_fit_their_targets_and_never_overlap(seed: int, profile: Profile, seconds: float) -> None:
    """Each fault is of a known kind, in time, at a target of its kind; a target suffers one at a time."""
    schedule = drawn(seed, profile, seconds)
    faults = schedule.faults
    assert list(faults) == sorted(faults, key=lambda fault: fault.at_s)
    for fault in faults:
        assert fault.kind in KINDS
        assert fault.at_s > 0
        assert fault.for_s >= 0
        assert bool(fault.script) == (fault.kind in ON_SCRIPT)
        on_network = fault.kind in ON_NETWORK
        places = [*worker_names(profile), *([CLIENTS] if on_network else [])]
        assert fault.target in ([SERVER] if fault.kind.endswith("-server") else places)
        assert profile.has_proxies or fault.kind not in ON_PROXY
    by_target = sorted(faults, key=lambda fault: (fault.target, fault.at_s, fault.for_s))
    for target, own in itertools.groupby(by_target, key=lambda fault: fault.target):
        for one, other in itertools.pairwise(own):
            assert one.at_s + one.for_s <= other.at_s, f"{target}: {one} and {other}"


def test_a_schedule_can_be_read_by_people() -> None:
    """Printed, a schedule says its seed and each fault in a line."""
    schedule = drawn(7, PROFILES["network"], 60)
    lines = str(schedule).splitlines()
    assert lines[0].startswith("seed 7, profile network")
    assert [fault.kind in line and fault.target in line for fault, line in zip(schedule.faults, lines[1:], strict=True)]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"seed": 1},
        {"seed": 1, "profile": "kills", "seconds": 5, "faults": [{"at_s": 1, "kind": "flood", "target": "w1"}]},
    ],
)
def test_what_is_no_schedule_is_refused(body: dict[str, object]) -> None:
    """A file that lacks something, or names a fault that nobody knows, is an error."""
    with pytest.raises(ValueError, match="no schedule"):
        Schedule.from_json(json.dumps(body))
