"""Whatever happens in whatever order, the ledger keeps its promises: Hypothesis looks for an order that breaks one.

``LEDGER_PROFILE=ledger-thorough`` tries 1,000 schedules.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from farm import keys
from farm.contracts import Request
from farm.errors import DeadlineUnmeetable, IdempotencyConflict
from farm.ledger import dead
from farm.ledger.attempts import Advance, Claim, Refusal, ReleaseKind
from farm.ledger.jobs import Jobs
from farm.ledger.records import Submission
from farm.ledger.upkeep import Dispatch, Upkeep
from tests.integration.ledger.farmhand import ENDED, MODEL, Field, Hand, Run, check, failed, indices, succeeded

COMMON = settings(deadline=None, print_blob=True, stateful_step_count=40, suppress_health_check=list(HealthCheck))
settings.register_profile("ledger", COMMON, max_examples=60)
settings.register_profile("ledger-thorough", COMMON, max_examples=1000)

LEASE_MS = 10_001
NAMES = ("barn", "mill", "silo")
FROZEN = ("state", "closed_by", "error", "finish_reason", "attempt", "nonce", "tail", "strikes", "losses")
picks = st.integers(0, 1000)
tenants = st.sampled_from(("ann", "ben", "cleo", "dan", "eve"))
priorities = st.sampled_from(("high", "normal", "low"))
kinds = st.sampled_from(("drain", "retry", "lost"))
replies = st.sampled_from(("came", "came", "came", "lost", "never came"))
spans = st.sampled_from((100, 1000, 2500, 6000, 11_000, 40_000, 120_000))


class AnyOrder(RuleBasedStateMachine):
    """Producers, three workers, two keepers, a broker that loses and doubles messages, and time."""

    def __init__(self, jobs: Jobs) -> None:
        super().__init__()
        self.jobs = jobs
        self.field = Field(jobs)
        self.keepers = [Upkeep(jobs), Upkeep(jobs)]
        self.accepted: dict[str, tuple[Request, str]] = {}
        self.ended: dict[str, dict[str, Any]] = {}
        self.messages: list[Dispatch] = []
        self.hands: dict[str, Hand] = {}
        self.ghosts: list[tuple[Hand, Run]] = []
        self.clocks: dict[str, float] = {}
        self.nonces = 0
        self.placed = 0

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

    @precondition(lambda self: self.hands)
    @rule(m=picks, which=st.integers(0, 1))
    def work_goes_out(self, m: int, which: int) -> None:
        """All workers beat, and what is due reaches them at once."""
        self.jobs.client.delete(keys.LEADER)
        for hand in self.hands.values():
            self.write(hand, [run.advance() for run in hand.runs.values()])
        messages = self.keepers[which].keep().messages + self.keepers[which].dispatch().messages
        for k, message in enumerate(messages):
            self.take(self.any_hand(m + k), message, "came")

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

    # Dead jobs, by hand

    @precondition(lambda self: self.hands)
    @rule(m=picks, n=picks)
    def job_dies(self, m: int, n: int) -> None:
        """A running job that has come to the edge goes over it, unless this attempt gave it many tokens."""
        self.work_goes_out(m, 0)
        if self.is_busy():
            hand, run = self.any_run(m, n)
            now = self.seen(run.id)["job"]
            if (now.get("state"), now.get("nonce")) == ("running", run.nonce):
                self.jobs.client.hset(keys.job(run.id), mapping={"strikes": 2, "losses": 9})
                hand.attempts.release([(run.id, run.nonce)], "lost", "lost")
            del hand.runs[run.id]

    @precondition(lambda self: self.jobs.client.zcard(keys.DEAD) or len(self.accepted) > 8)
    @rule(n=picks, fresh=st.booleans(), lost=st.booleans())
    def retry_by_hand(self, n: int, fresh: bool, lost: bool) -> None:
        job_id = self.any_job(n, "dead")
        before = self.seen(job_id)
        is_dead = before["job"]["state"] == "dead"
        token = f"call-{self.steps()}"
        words = [self.jobs.scripts.call("revive", token, int(fresh), job_id) for _ in range(1 + lost)]
        after = self.seen(job_id)
        if not is_dead:
            assert words == [[before["job"]["state"]]] * len(words)
            assert after == before, "a job that is not dead was retried"
            return
        assert words == [["revived"]] * len(words), "a repeated retry got another answer"
        assert (after["job"]["state"], after["job"]["strikes"], after["job"]["losses"]) == ("queued", "0", "0")
        assert after["out"] == ([] if fresh else before["out"])
        assert len(after["history"]) == min(20, len(before["history"]) + 1), "a retry was noted twice"
        del self.ended[job_id]

    @precondition(lambda self: self.jobs.client.zcard(keys.DEAD) or len(self.accepted) > 8)
    @rule(n=picks, lost=st.booleans())
    def purge_by_hand(self, n: int, lost: bool) -> None:
        job_id = self.any_job(n, "dead")
        before = self.seen(job_id)
        [answer] = dead.purge(self.jobs, [job_id])
        if before["job"]["state"] != "dead":
            assert (answer.is_done, answer.state) == (False, before["job"]["state"])
            assert self.seen(job_id) == before, "a job that is not dead was deleted"
            return
        assert answer.is_done
        if lost:
            assert dead.purge(self.jobs, [job_id]) == [dead.Answer(job_id, False, None)]
        assert self.seen(job_id) == {"job": {}, "out": [], "history": []}
        del self.ended[job_id], self.accepted[job_id]

    # The world

    @rule(milliseconds=spans, silent=st.booleans())
    def time_passes(self, milliseconds: int, silent: bool) -> None:
        self.field.later(milliseconds, silent=silent)

    @rule()
    def server_forgets_scripts(self) -> None:
        self.jobs.client.script_flush()

    # What holds after every step, and at the end

    @invariant()
    def all_is_in_its_place(self) -> None:
        jobs = check(self.field)
        assert set(jobs) == set(self.accepted), "a job was lost or made up"
        for job_id, job in jobs.items():
            if job["state"] in ENDED:
                end = {name: value for name, value in job.items() if name in FROZEN}
                end["tokens"] = indices(self.seen(job_id)["out"])
                assert self.ended.setdefault(job_id, end) == end, f"{job_id} ended twice"
            else:
                assert job_id not in self.ended, f"{job_id} rose from its end"
        for name in self.jobs.client.scan_iter(f"{keys.PREFIX}vclock:*", count=1000):
            clock = float(self.jobs.client.get(name))
            assert clock >= self.clocks.get(name, 0), "virtual time fell"
            self.clocks[name] = clock

    def teardown(self) -> None:
        """Given workers and time, everything that was accepted ends."""
        if sys.exc_info()[0] is not None:
            return  # a step failed: what it left behind would hide why
        if not self.hands:
            self.hands["barn"] = self.field.worker("barn")
        for _ in range(300):
            if all(self.field.state(job_id) in ENDED for job_id in self.accepted):
                break
            self.field.later(700)
            self.work_goes_out(0, 0)
            for hand in self.hands.values():
                for run in list(hand.runs.values()):
                    run.generate(2)
                    self.end(hand, run, False, False)
                    del hand.runs[run.id]
        self.all_is_in_its_place()
        assert set(self.ended) == set(self.accepted), "some jobs never ended"

    # Helpers

    def any_job(self, n: int, state: str = "") -> str:
        """Some job; one in that state if there is one."""
        found = [job_id for job_id in self.accepted if self.field.state(job_id) == state] or list(self.accepted)
        return found[n % len(found)]

    def steps(self) -> int:
        """A number that is another at each call."""
        self.nonces += 1
        return self.nonces

    def any_hand(self, m: int) -> Hand:
        return list(self.hands.values())[m % len(self.hands)]

    def is_busy(self) -> bool:
        return any(hand.runs for hand in self.hands.values())

    def any_run(self, m: int, n: int) -> tuple[Hand, Run]:
        busy = [hand for hand in self.hands.values() if hand.runs]
        hand = busy[m % len(busy)]
        return hand, list(hand.runs.values())[n % len(hand.runs)]

    def place(self, **more: Any) -> Submission:
        """A job under an id that is the same in each replay."""
        job = self.field.place(f"prompt {self.placed}", job_id=f"job-{self.placed}", **more)
        self.placed += 1
        self.accepted[job.id] = (job.request, job.tenant)
        return job

    def take(self, hand: Hand, message: Dispatch, reply: str) -> None:
        """Deliver a message. A lost reply makes the worker ask again; one that never comes makes it give up."""
        nonce = f"nonce-{self.steps()}"
        before = self.seen(message.id)
        answer = hand.attempts.claim(message.id, message.number, nonce)
        fits = before["job"].get("state") == "dispatched" and int(before["job"]["dispatch"]) == message.number
        if isinstance(answer, Claim):
            assert fits, "a stale message was granted"
        elif not fits:
            assert self.seen(message.id) == before, "a stale message changed its job"
        if reply == "lost":
            again = hand.attempts.claim(message.id, message.number, nonce)
            assert isinstance(answer, Refusal) or (isinstance(again, Claim) and again.kept == answer.kept)
        if reply != "never came" and isinstance(answer, Claim):
            hand.runs[message.id] = Run(message.id, nonce, before["out"])

    def write(self, hand: Hand, sent: list[Advance], lost: bool = False) -> None:
        """One beat of a worker."""
        before = {advance.id: self.seen(advance.id) for advance in sent}
        for _ in range(1 + lost):
            is_known, words = hand.attempts.progress(sent, hand.capacity)
        if not is_known:
            hand.attempts.register(hand.name, hand.model, hand.capacity, "model", None)
        for advance, kept in zip(sent, words, strict=True):
            run, was = hand.runs[advance.id], before[advance.id]
            owned = was["job"].get("state") == "running" and was["job"]["nonce"] == run.nonce
            assert (kept.word != "lost") == owned
            stored = self.jobs.client.lrange(keys.out(run.id), 0, -1)
            assert kept.tokens == len(stored)
            if kept.word == "ok":
                assert stored == run.entries, "what is stored is not what was written"
            elif kept.word == "gap":
                assert advance.start > kept.tokens
                assert stored == run.entries[: kept.tokens]
            else:
                assert self.seen(run.id) == was, "a stale worker changed a job"
                del hand.runs[run.id]

    def end(self, hand: Hand, run: Run, fails: bool, lost: bool) -> None:
        """Finish a run, and see that it stands exactly if the run is still the latest of a job that has not ended."""
        before = self.seen(run.id)
        may = before["job"].get("nonce") == run.nonce and before["job"]["state"] not in ENDED
        outcome = failed() if fails else succeeded()
        answers = [hand.attempts.finish(run.advance(), outcome) for _ in range(1 + lost)]
        assert answers == [answers[0]] * len(answers), "a repeated finish got another answer"
        if may:
            assert answers[0] is None
            assert self.field.state(run.id) == ("failed" if fails else "succeeded")
            assert self.jobs.client.lrange(keys.out(run.id), 0, -1) == run.entries
        else:
            assert self.seen(run.id) == before, "a finish changed a job that was not its own"

    def seen(self, job_id: str) -> dict[str, Any]:
        with self.jobs.client.pipeline() as pipe:
            pipe.hgetall(keys.job(job_id)).lrange(keys.out(job_id), 0, -1).lrange(keys.history(job_id), 0, -1)
            job, out, history = pipe.execute()
        return {"job": job, "out": out, "history": history}


def test_no_order_of_events_breaks_a_promise(jobs: Jobs) -> None:
    """No accepted job is lost, ends twice, mixes tokens of two owners or is miscounted, and everything ends."""
    profile = settings.get_profile(os.environ.get("LEDGER_PROFILE", "ledger"))
    run_state_machine_as_test(lambda: AnyOrder(jobs), settings=profile)
