"""The simulated autoscaler does what Kubernetes' own does, with the numbers of scaling.yaml."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.autoscale.day import Job
from benchmarks.autoscale.farm import SLOTS, Farm, Pace
from benchmarks.autoscale.policy import SYNC_S, Pool, pools

pytestmark = pytest.mark.fast

PACE = Pace(full=100.0, alone=10.0, start_s=120.0)


@pytest.fixture
def pool() -> Pool:
    """The main pool."""
    return pools(to_zero=False)[0]


def _follow(pool: Pool, demand: float, replicas: int, since_s: float, seconds: float) -> list[int]:
    """The pool's size at each sync while the demand stays."""
    sizes = []
    for number in range(int(seconds / SYNC_S)):
        seen = {"demand": demand, "oldest": 0.0}
        replicas = pool.sync(since_s + number * SYNC_S, seen, replicas, replicas)
        sizes.append(replicas)
    return sizes


def test_a_pool_grows_at_once_by_four_or_by_its_size_a_minute(pool: Pool) -> None:
    """From one worker to 16 for a demand of 40: 5, 10, 16, a minute apart."""
    sizes = _follow(pool, 40.0, 1, 0.0, 180)
    assert sizes[::4] == [5, 10, 16]
    assert max(sizes) == pool.most


def test_a_pool_shrinks_after_ten_quiet_minutes_and_one_at_a_time(pool: Pool) -> None:
    """Nothing goes within ten minutes of the last need; then one worker every two."""
    [sixteen] = set(_follow(pool, 15.9, 16, 0.0, 60))
    sizes = _follow(pool, 1.0, sixteen, 60.0, 1200)
    assert set(sizes[: int(585 / SYNC_S)]) == {16}
    assert 16 - sizes[-1] in (5, 6)
    assert all(before - after in (0, 1) for before, after in itertools.pairwise(sizes))


def test_a_demand_near_the_size_changes_nothing(pool: Pool) -> None:
    """Within a tenth the autoscaler leaves a pool alone."""
    assert set(_follow(pool, 10.9, 10, 0.0, 60)) == {10}
    assert _follow(pool, 11.5, 10, 60.0, 15) == [12]


def test_late_jobs_grow_the_pool_by_how_late_they_are(pool: Pool) -> None:
    """A job that has waited for two minutes doubles the workers that are ready; starting ones do not count."""
    seen = {"demand": 1.0, "oldest": 120.0}
    assert pool.sync(0.0, seen, 4, 3) == 6


def test_only_keda_zero_goes_to_none_and_comes_back(pool: Pool) -> None:
    """After a quarter of an hour without jobs the pool is empty; the first job brings one worker back."""
    idle, busy = {"demand": 0.0, "oldest": 0.0}, {"demand": 0.1, "oldest": 3.0}
    zero = pools(to_zero=True)[0]
    for one, least in ((pool, 1), (zero, 0)):
        one.wake(0.0, busy, 1)
        assert one.wake(899.0, idle, 1) == 1
        assert one.wake(900.0, idle, 1) == least
    assert zero.sync(905.0, idle, 0, 0) == 0
    assert zero.wake(910.0, busy, 0) == 1


def test_workers_share_their_pace_and_hand_jobs_over() -> None:
    """Ten jobs at ten tokens a second each take as long as one; twice as many take twice as long; tokens are kept."""

    def took(count: int) -> float:
        jobs = [Job(number, 0.0, 50, 50.0) for number in range(count)]
        Farm(jobs, PACE, [], {"main": 1}).run(0.0)
        return max(job.ended_s or 0.0 for job in jobs)

    assert [took(count) for count in (1, 10, 20)] == pytest.approx([5.0, 5.0, 10.0])
    assert took(SLOTS + 1) == pytest.approx(50.0 * SLOTS / 100 + 5.0)


class Shrinking(Pool):
    """A pool that goes down to one worker at the second sync."""

    def sync(self, now_s: float, _seen: dict[str, float], replicas: int, _ready: int) -> int:
        return replicas if now_s < SYNC_S else 1


def test_a_job_goes_on_elsewhere_when_its_worker_is_taken_away() -> None:
    """It keeps its tokens and its place: two jobs of 30 s on two workers end after 30 s although one worker left."""
    jobs = [Job(number, 0.0, 300, 300.0) for number in range(2)]
    farm = Farm(jobs, PACE, [Shrinking("main", 1, 2, 10.0, 900.0, {}, {}, [])], {"main": 2})
    farm.run(0.0)
    assert [job.ended_s for job in jobs] == pytest.approx([30.0, 30.0])
    assert farm.handed_over == 1
    assert farm.worker_s == pytest.approx(30.0 + SYNC_S)
