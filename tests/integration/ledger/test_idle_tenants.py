"""The virtual time of tenants that went away is forgotten, and nobody's turn changes for it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from farm import keys
from farm.ledger import upkeep
from farm.ledger.jobs import Jobs
from farm.settings import load_settings
from tests.integration.ledger.farmhand import MODEL, Field
from tests.integration.ledger.invariants import check

VTIME = f"{keys.PREFIX}vtime:{MODEL}"
tenants = st.sampled_from(("ann", "ben", "cleo", "dan"))
deeds = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), tenants, st.sampled_from(("high", "normal", "low")), st.integers(1, 60)),
        st.tuples(st.just("dispatch")),
        st.tuples(st.just("finish"), st.integers(0, 9), st.integers(0, 60)),
        st.tuples(st.just("release"), st.integers(0, 9)),
        st.tuples(st.just("cancel"), st.integers(0, 9)),
        st.tuples(st.just("serve"), tenants, st.integers(1, 60)),
    ),
    min_size=4,
    max_size=40,
)


class Play:
    """A farm that does one deed after the other, with room for one job at a time."""

    def __init__(self, jobs: Jobs, *, tidies: bool) -> None:
        jobs.client.flushall()
        self.field = Field(jobs)
        self.hand = self.field.worker()
        self.tidies = tidies
        self.submitted: list[str] = []
        self.turns: list[str] = []

    def submit(self, tenant: str, priority: str, tokens: int) -> None:
        job = self.field.place(job_id=f"job-{len(self.submitted)}", tenant=tenant, priority=priority, max_tokens=tokens)
        self.field.jobs.submit([job])
        self.submitted.append(job.id)

    def dispatch(self) -> None:
        self.field.client.hset(keys.worker(self.hand.attempts.worker), "capacity", len(self.hand.runs) + 1)
        self.field.client.zadd(keys.WORKERS, {self.hand.attempts.worker: time.time() * 1000})
        for message in self.field.dispatch():
            self.turns.append(message.id)
            self.hand.claim(message)

    def finish(self, which: int, tokens: int) -> None:
        if self.hand.runs:
            self.hand.finish(list(self.hand.runs)[which % len(self.hand.runs)], tokens)

    def release(self, which: int) -> None:
        if self.hand.runs:
            self.hand.release("drain", "drain", [list(self.hand.runs)[which % len(self.hand.runs)]])

    def cancel(self, which: int) -> None:
        if self.submitted:
            job_id = self.submitted[which % len(self.submitted)]
            self.field.jobs.cancel([job_id])
            self.hand.runs.pop(job_id, None)

    def serve(self, tenant: str, tokens: int) -> None:
        self.submit(tenant, "normal", tokens)
        self.dispatch()
        self.finish(-1, tokens)

    def all(self, script: list[tuple[Any, ...]]) -> list[str]:
        """Do it, then let out whatever still waits. Returns the jobs in the order of their turns."""
        for name, *args in script:
            getattr(self, name)(*args)
            if self.tidies and self.field.keeper.tidy():
                check(self.field)
        for _ in self.submitted:
            self.dispatch()
        return self.turns


@pytest.fixture
def narrow(jobs: Jobs) -> Jobs:
    """The ledger of a farm without a margin."""
    return Jobs(load_settings(redis={"url": jobs.settings.redis.url}, keeper={"margin": 0}), jobs.client)


# Ann's time is below the clock, and ben may be paid back what takes him below hers.
PAID_BACK = [
    ("serve", "ann", 30),
    ("submit", "ben", "normal", 60),
    ("dispatch",),
    ("submit", "ben", "normal", 60),
    ("serve", "cleo", 50),
    ("serve", "cleo", 60),
    ("cancel", 1),
    ("submit", "ann", "normal", 10),
]
# Ann's time is below the clock, which dan's urgent jobs moved, and above ben's, who waits at normal.
OVERTAKEN = [
    ("serve", "ann", 30),
    ("submit", "ben", "normal", 20),
    ("submit", "ben", "normal", 20),
    *[("submit", "dan", "high", 60), ("dispatch",), ("finish", 0, 60)] * 3,
    ("submit", "ann", "normal", 20),
]


@settings(max_examples=80, suppress_health_check=list(HealthCheck), deadline=None)
@given(script=deeds)
@example(script=PAID_BACK)
@example(script=OVERTAKEN)
def test_forgetting_changes_nobody_s_turn(narrow: Jobs, script: list[tuple[Any, ...]]) -> None:
    """Whatever tenants do, jobs go out in the order in which they would if nothing was ever forgotten."""
    assert Play(narrow, tidies=True).all(script) == Play(narrow, tidies=False).all(script)


def test_tenants_that_went_away_leave_nothing_behind(narrow: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 500 tenants that came once, only those that are still ahead of the others are remembered."""
    play = Play(narrow, tidies=False)
    for number in range(500):
        play.serve(f"tenant-{number}", 1)
    for _ in range(5):
        play.serve("ann", 50)
    assert play.field.client.hlen(VTIME) == 501
    monkeypatch.setattr(upkeep, "TIDY_S", 0.0)
    for _ in range(50):
        play.field.keep()
    assert play.field.client.hkeys(VTIME) == ["ann"]
