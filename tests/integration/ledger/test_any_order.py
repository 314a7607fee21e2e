"""Whatever happens in whatever order, the ledger keeps its promises: Hypothesis looks for an order that breaks one.

``LEDGER_PROFILE=ledger-thorough`` tries 1,000 schedules.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from farm import keys
from farm.contracts import Request
from farm.errors import DeadlineUnmeetable, IdempotencyConflict
from farm.ledger.attempts import ReleaseKind
from farm.ledger.jobs import Jobs
from tests.integration.ledger.by_hand import ByHand
from tests.integration.ledger.farmhand import ENDED, MODEL
from tests.integration.ledger.world import picks

COMMON = settings(deadline=None, print_blob=True, stateful_step_count=40, suppress_health_check=list(HealthCheck))
settings.register_profile("ledger", COMMON, max_examples=60)
settings.register_profile("ledger-thorough", COMMON, max_examples=1000)

LEASE_MS = 10_001
NAMES = ("barn", "mill", "silo")
tenants = st.sampled_from(("ann", "ben", "cleo", "dan", "eve"))
priorities = st.sampled_from(("high", "normal", "low"))
kinds = st.sampled_from(("drain", "retry", "lost"))
replies = st.sampled_from(("came", "came", "came", "lost", "never came"))
spans = st.sampled_from((100, 1000, 2500, 6000, 11_000, 40_000, 120_000))


class AnyOrder(ByHand):
    """Three workers, and whatever may happen to them, in whatever order."""

    @initialize(count=st.integers(1, 4))
    def start(self, count: int) -> None:
        self.jobs.client.flushall()
        for name in NAMES[:2]:
            self.hands[name] = self.field.worker(name)
        self.jobs.submit([self.place() for _ in range(count)])

    # Producers

    @rule(count=st.integers(1, 4), tenant=tenants, priority=priorities, lost=st.booleans())
    def submit(self, count: int, tenant: str, priority: str, lost: bool) -> None:
        placed = [self.place(tenant=tenant, priority=priority) for _ in range(count)]
        assert self.jobs.submit(placed) == [True] * count
        if lost:
            assert self.jobs.submit(placed) == [False] * count

    @rule(tenant=tenants, deadline_s=st.sampled_from((0.5, 5, 60)))
    def submit_with_deadline(self, tenant: str, deadline_s: float) -> None:
        placed = self.place(tenant=tenant, deadline_s=deadline_s)
        try:
            self.jobs.submit([placed])
        except DeadlineUnmeetable:
            del self.accepted[placed.id]

    @precondition(lambda self: self.accepted)
    @rule(n=picks, same=st.booleans())
    def submit_again(self, n: int, same: bool) -> None:
        job_id = self.any_job(n)
        request, tenant = self.accepted[job_id]
        before = self.seen(job_id)
        if same:
            assert self.jobs.submit([self.jobs.place(request, tenant=tenant, job_id=job_id)]) == [False]
        else:
            with pytest.raises(IdempotencyConflict):
                self.jobs.submit([self.jobs.place(Request(prompt="another"), tenant=tenant, job_id=job_id)])
        assert self.seen(job_id) == before

    @precondition(lambda self: self.accepted)
    @rule(n=picks, twice=st.booleans())
    def cancel(self, n: int, twice: bool) -> None:
        job_id = self.any_job(n)
        was = self.field.state(job_id)
        for _ in range(1 + twice):
            [state] = self.jobs.cancel([job_id])
            assert state == (was if was in ENDED else "cancelled")

    # Keepers and messages

    @rule(which=st.integers(0, 1), lost=st.booleans())
    def dispatch(self, which: int, lost: bool) -> None:
        messages = self.keepers[which].dispatch().messages
        self.messages += [] if lost else messages

    @rule(which=st.integers(0, 1), lost=st.booleans())
    def keep(self, which: int, lost: bool) -> None:
        messages = self.keepers[which].keep().messages
        self.messages += [] if lost else messages

    @rule(which=st.integers(0, 1))
    def tidy(self, which: int) -> None:
        before = self.field.read(f"{keys.PREFIX}vtime:{MODEL}") or {}
        count = self.keepers[which].tidy()
        after = self.field.read(f"{keys.PREFIX}vtime:{MODEL}") or {}
        assert len(after) == len(before) - count
        assert after.items() <= before.items()

    @rule(is_other=st.booleans())
    def lead_changes(self, is_other: bool) -> None:
        self.jobs.client.delete(keys.LEADER)
        if is_other:
            self.jobs.client.set(keys.LEADER, "another keeper, which sleeps", px=1000)

    @precondition(lambda self: self.messages)
    @rule(n=picks)
    def lose_message(self, n: int) -> None:
        del self.messages[n % len(self.messages)]

    @precondition(lambda self: self.messages)
    @rule(n=picks)
    def double_message(self, n: int) -> None:
        self.messages.append(self.messages[n % len(self.messages)])

    @precondition(lambda self: self.messages and self.hands)
    @rule(n=picks, m=picks, count=st.integers(1, 6), reply=replies)
    def deliver(self, n: int, m: int, count: int, reply: str) -> None:
        for k in range(min(count, len(self.messages))):
            self.take(self.any_hand(m + k), self.messages.pop(n % len(self.messages)), reply)

    # Workers

    @precondition(lambda self: self.hands)
    @rule(m=picks, tokens=st.lists(st.integers(0, 20), max_size=4), back=st.integers(0, 30), lost=st.booleans())
    def progress(self, m: int, tokens: list[int], back: int, lost: bool) -> None:
        hand = self.any_hand(m)
        for run, count in zip(list(hand.runs.values()), tokens, strict=False):
            run.generate(count)
        self.write(hand, [run.advance(max(0, len(run.entries) - back)) for run in hand.runs.values()], lost)

    @precondition(lambda self: self.is_busy())
    @rule(m=picks, n=picks, tokens=st.integers(0, 20), fails=st.booleans(), lost=st.booleans())
    def finish(self, m: int, n: int, tokens: int, fails: bool, lost: bool) -> None:
        hand, run = self.any_run(m, n)
        run.generate(tokens)
        self.end(hand, run, fails, lost)
        del hand.runs[run.id]

    @precondition(lambda self: self.is_busy())
    @rule(m=picks, n=picks, kind=kinds, wait_s=st.sampled_from((0, 3)), lost=st.booleans())
    def release(self, m: int, n: int, kind: ReleaseKind, wait_s: float, lost: bool) -> None:
        hand, run = self.any_run(m, n)
        runs = list(hand.runs.values()) if kind == "lost" else [run]
        held = [(run.id, run.nonce) for run in runs]
        before = {run.id: self.seen(run.id) for run in runs}
        first = hand.attempts.release(held, kind, kind, wait_s=wait_s)
        after = {run.id: self.seen(run.id) for run in runs}
        if lost:
            assert hand.attempts.release(held, kind, kind, wait_s=wait_s) == first
            assert {run.id: self.seen(run.id) for run in runs} == after, "a release counted twice"
        for run in runs:
            was = before[run.id]["job"]
            if was.get("state") != "running" or was["nonce"] != run.nonce:
                assert after[run.id] == before[run.id], "a stale worker changed a job"
            else:
                assert after[run.id]["job"]["state"] in ("queued", "failed", "dead")
                assert after[run.id]["out"] == before[run.id]["out"]
            del hand.runs[run.id]

    @precondition(lambda self: self.hands)
    @rule(m=picks, noticed=st.booleans())
    def crash(self, m: int, noticed: bool) -> None:
        hand = self.hands.pop(self.any_hand(m).name)
        self.ghosts += [(hand, run) for run in hand.runs.values()]
        if noticed:
            self.field.later(LEASE_MS)
            if self.hands:
                self.work_goes_out(m, 0)

    @precondition(lambda self: self.hands)
    @rule(m=picks)
    def drain(self, m: int) -> None:
        hand = self.hands.pop(self.any_hand(m).name)
        held = [(run.id, run.nonce) for run in hand.runs.values()]
        hand.attempts.release(held, "drain", "drain", draining=True)
        hand.attempts.leave()
        self.ghosts += [(hand, run) for run in hand.runs.values()]

    @rule(name=st.sampled_from(NAMES), twice=st.booleans())
    def restart(self, name: str, twice: bool) -> None:
        old = self.hands.pop(name, None)
        if old:
            self.ghosts += [(old, run) for run in old.runs.values()]
        hand = self.hands[name] = self.field.worker(name)
        if twice:
            assert hand.attempts.register(name, hand.model, hand.capacity, "model", None) == 0

    @precondition(lambda self: self.ghosts)
    @rule(deed=st.sampled_from(("write", "finish", "release")), tokens=st.integers(0, 5))
    def ghosts_act(self, deed: str, tokens: int) -> None:
        """Workers that were thought dead were only slow."""
        for hand, run in self.ghosts:
            run.generate(tokens)
            before = self.seen(run.id)
            owned = before["job"].get("nonce") == run.nonce
            running = owned and before["job"].get("state") == "running"
            if deed == "write":
                _, [kept] = hand.attempts.progress([run.advance()], hand.capacity)
                assert (kept.word == "ok") == running
            elif deed == "finish":
                self.end(hand, run, False, False)
            else:
                hand.attempts.release([(run.id, run.nonce)], "lost", "lost")
            if not (running or (owned and deed == "finish")):
                assert self.seen(run.id) == before, "a ghost changed a job that another has claimed"

    @precondition(lambda self: self.is_busy())
    @rule(m=picks, n=picks, deed=st.sampled_from(("write", "finish", "release")), name=st.sampled_from(NAMES))
    def slow_worker_is_overtaken(self, m: int, n: int, deed: str, name: str) -> None:
        """A worker sleeps, its jobs go to others, and it wakes up and goes on as if nothing had happened."""
        hand, _ = self.any_run(m, n)
        del self.hands[hand.name]
        self.ghosts += [(hand, run) for run in hand.runs.values()]
        self.restart(name, False)
        self.field.later(LEASE_MS)
        self.work_goes_out(n, 0)
        self.ghosts_act(deed, n % 5)

    @precondition(lambda self: self.messages and self.hands)
    @rule(m=picks, n=picks)
    def message_is_overtaken(self, m: int, n: int) -> None:
        """A message is so late that its job has been dispatched again under another number."""
        late = self.messages[n % len(self.messages)]
        for _ in range(6):
            self.jobs.client.delete(keys.LEADER)
            self.field.later(33_000)
            for hand in self.hands.values():
                self.write(hand, [run.advance() for run in hand.runs.values()])
            self.keepers[0].keep()
            self.keepers[0].dispatch()
        self.take(self.any_hand(m), late, "came")

    # The world

    @rule(milliseconds=spans, silent=st.booleans())
    def time_passes(self, milliseconds: int, silent: bool) -> None:
        self.field.later(milliseconds, silent=silent)

    @rule()
    def server_forgets_scripts(self) -> None:
        self.jobs.client.script_flush()


def test_no_order_of_events_breaks_a_promise(jobs: Jobs) -> None:
    """No accepted job is lost, ends twice, mixes tokens of two owners or is miscounted, and everything ends."""
    profile = settings.get_profile(os.environ.get("LEDGER_PROFILE", "ledger"))
    run_state_machine_as_test(lambda: AnyOrder(jobs), settings=profile)
