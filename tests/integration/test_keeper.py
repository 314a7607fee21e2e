"""The keeper's thread beside others."""

from __future__ import annotations

from farm import keys
from farm.broker import make_app
from farm.ledger.jobs import Jobs
from farm.ledger.upkeep import Round, Upkeep
from farm.settings import load_settings
from tests.conftest import wait_until
from workers.keeper import Keeper


class Watched(Upkeep):
    """Upkeep that counts its looks and waits."""

    looks = waits = 0

    def keep(self) -> Round:
        self.looks += 1
        return super().keep()

    def wait(self, timeout_s: float) -> None:
        self.waits += 1
        super().wait(timeout_s)


def test_a_keeper_that_does_not_lead_takes_no_wake_up(jobs: Jobs) -> None:
    """A wake-up is for the one that leads, whatever the ratio of tick and lock; the others take it when they lead."""
    settings = load_settings(redis={"url": jobs.settings.redis.url}, keeper={"tick_s": 0.4, "lock_s": 0.2})
    upkeep = Watched(Jobs(settings))
    jobs.client.set(keys.LEADER, "another")
    jobs.client.rpush(keys.WAKE, "1")
    keeper = Keeper(settings, make_app(settings), upkeep)
    keeper.start()
    wait_until(lambda: upkeep.looks >= 3, why="three looks")
    assert upkeep.waits == 0
    assert jobs.client.llen(keys.WAKE) == 1
    jobs.client.delete(keys.LEADER)
    wait_until(lambda: jobs.client.llen(keys.WAKE) == 0, why="the lead to be taken")
    keeper.stop()
    upkeep.jobs.client.close()
