"""Whatever happens in whatever order, the ledger keeps its promises: Hypothesis looks for an order that breaks one.

``LEDGER_PROFILE=ledger-thorough`` tries 1,000 schedules.
"""

from __future__ import annotations

import os
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
from farm.errors import IdempotencyConflict
from farm.ledger.attempts import Claim, Refusal
from farm.ledger.jobs import Jobs
from farm.ledger.upkeep import Dispatch, Upkeep
from tests.integration.ledger.farmhand import ENDED, Field, Hand, Run, check, failed, indices, succeeded

COMMON = settings(
    deadline=None,
    print_blob=True,
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile("ledger", COMMON, max_examples=60)
settings.register_profile("ledger-thorough", COMMON, max_examples=1000, stateful_step_count=60)

NAMES = ("barn", "mill", "silo")
TENANTS = ("ann", "ben", "cleo")
PRIORITIES = ("high", "normal", "low")
FROZEN = ("state", "finished", "closed_by", "error", "finish_reason", "attempt", "nonce", "tail")
pick = st.integers(0, 1000)


class AnyOrder(RuleBasedStateMachine):
    """Producers, three workers, two keepers, a broker that loses and doubles messages, and time."""

    def __init__(self, jobs: Jobs) -> None:
        super().__init__()
        self.jobs = jobs
        self.field = Field(jobs)
        self.accepted: dict[str, tuple[Request, str]] = {}
        self.ended: dict[str, dict[str, Any]] = {}
        self.messages: list[Dispatch] = []
        self.hands: dict[str, Hand] = {}
        self.ghosts: list[tuple[Hand, Run]] = []
        self.clocks: dict[str, float] = {}
        self.keepers = [Upkeep(jobs), Upkeep(jobs)]

    @initialize()
    def start(self) -> None:
        self.jobs.client.flushall()
        for name in NAMES[:2]:
            self.hands[name] = self.field.worker(name)

    # Producers

    @rule(
        count=st.integers(1, 4),
        tenant=st.sampled_from(TENANTS),
        priority=st.sampled_from(PRIORITIES),
        lost=st.booleans(),
    )
    def submit(self, count: int, tenant: str, priority: str, lost: bool) -> None:
        prompt = f"prompt {len(self.accepted)}"
        placed = [self.field.place(prompt, tenant=tenant, priority=priority) for _ in range(count)]
        assert self.jobs.submit(placed) == [True] * count
        if lost:
            assert self.jobs.submit(placed) == [False] * count
        for job in placed:
            self.accepted[job.id] = (job.request, tenant)

    @rule(tenant=st.sampled_from(TENANTS), deadline_s=st.sampled_from([0.5, 5, 60]))
    def submit_with_deadline(self, tenant: str, deadline_s: float) -> None:
        job = self.field.place("soon", tenant=tenant, deadline_s=deadline_s)
        self.jobs.submit([job])
        self.accepted[job.id] = (job.request, tenant)

    @precondition(lambda self: self.accepted)
    @rule(n=pick, same=st.booleans())
    def submit_again(self, n: int, same: bool) -> None:
        job_id = list(self.accepted)[n % len(self.accepted)]
        request, tenant = self.accepted[job_id]
        before = self.seen(job_id)
        if same:
            assert self.jobs.submit([self.jobs.place(request, tenant=tenant, job_id=job_id)]) == [False]
        else:
            with pytest.raises(IdempotencyConflict):
                self.jobs.submit([self.jobs.place(Request(prompt="another"), tenant=tenant, job_id=job_id)])
        assert self.seen(job_id) == before

    @precondition(lambda self: self.accepted)
    @rule(n=pick, twice=st.booleans())
    def cancel(self, n: int, twice: bool) -> None:
        job_id = list(self.accepted)[n % len(self.accepted)]
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

    @rule()
    def lead_ends(self) -> None:
        self.jobs.client.delete(keys.LEADER)

    @precondition(lambda self: self.messages)
    @rule(n=pick)
    def lose_message(self, n: int) -> None:
        del self.messages[n % len(self.messages)]

    @precondition(lambda self: self.messages)
    @rule(n=pick)
    def double_message(self, n: int) -> None:
        self.messages.append(self.messages[n % len(self.messages)])

    @precondition(lambda self: self.messages and self.hands)
    @rule(n=pick, m=pick, reply=st.sampled_from(["came", "came", "came", "lost", "lost for good"]))
    def deliver(self, n: int, m: int, reply: str) -> None:
        message = self.messages.pop(n % len(self.messages))
        hand = self.any_hand(m)
        before = self.seen(message.id)
        nonce = f"nonce-{len(self.ghosts)}-{m}-{before['job'].get('dispatch')}-{os.urandom(4).hex()}"
        answer = hand.attempts.claim(message.id, message.number, nonce)
        fits = before["job"]["state"] == "dispatched" and int(before["job"]["dispatch"]) == message.number
        if isinstance(answer, Claim):
            assert fits, "a stale message was granted"
        elif not fits:
            assert self.seen(message.id) == before, "a stale message changed its job"
        if reply == "lost":
            again = hand.attempts.claim(message.id, message.number, nonce)
            assert again == answer or isinstance(answer, Refusal)
        if reply != "lost for good" and isinstance(answer, Claim):
            stored = self.jobs.client.lrange(keys.out(message.id), 0, -1)
            hand.runs[message.id] = Run(message.id, nonce, stored)

    # Workers

    @precondition(lambda self: self.hands)
    @rule(
        m=pick, tokens=st.lists(st.integers(0, 20), min_size=1, max_size=4), back=st.integers(0, 30), lost=st.booleans()
    )
    def progress(self, m: int, tokens: list[int], back: int, lost: bool) -> None:
        hand = self.any_hand(m)
        for run, count in zip(list(hand.runs.values()), tokens, strict=False):
            run.generate(count)
        sent = [run.advance(max(0, len(run.entries) - back)) for run in hand.runs.values()]
        before = {run.id: self.seen(run.id) for run in hand.runs.values()}
        for _ in range(1 + lost):
            is_known, words = hand.attempts.progress(sent, hand.capacity)
        if not is_known:
            hand.attempts.register(hand.name, hand.model, hand.capacity, "model", None)
        for run, advance, kept in zip(list(hand.runs.values()), sent, words, strict=True):
            owned = before[run.id]["job"]["state"] == "running" and before[run.id]["job"]["nonce"] == run.nonce
            assert (kept.word != "lost") == owned
            stored = self.jobs.client.lrange(keys.out(run.id), 0, -1)
            assert kept.tokens == len(stored)
            if kept.word == "ok":
                assert stored == run.entries, "an accepted write is not what was written"
            elif kept.word == "gap":
                assert advance.start > kept.tokens
                assert stored == run.entries[: kept.tokens]
            else:
                assert self.seen(run.id) == before[run.id], "a stale worker changed a job"
                del hand.runs[run.id]

    @precondition(lambda self: any(hand.runs for hand in self.hands.values()))
    @rule(m=pick, n=pick, tokens=st.integers(0, 20), fails=st.booleans(), lost=st.booleans())
    def finish(self, m: int, n: int, tokens: int, fails: bool, lost: bool) -> None:
        hand, run = self.any_run(m, n)
        run.generate(tokens)
        self.end(hand, run, fails, lost)
        del hand.runs[run.id]

    @precondition(lambda self: any(hand.runs for hand in self.hands.values()))
    @rule(
        m=pick,
        n=pick,
        kind=st.sampled_from(["drain", "retry", "lost"]),
        wait_s=st.sampled_from([0, 3]),
        lost=st.booleans(),
    )
    def release(self, m: int, n: int, kind: Any, wait_s: float, lost: bool) -> None:
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
            if was["state"] != "running" or was["nonce"] != run.nonce:
                assert after[run.id] == before[run.id], "a stale worker changed a job"
            else:
                assert after[run.id]["job"]["state"] in ("queued", "failed", "dead")
                assert after[run.id]["out"] == before[run.id]["out"]
            del hand.runs[run.id]

    @precondition(lambda self: self.hands)
    @rule(m=pick)
    def crash(self, m: int) -> None:
        hand = self.hands.pop(self.any_hand(m).name)
        self.ghosts += [(hand, run) for run in hand.runs.values()]

    @precondition(lambda self: self.hands)
    @rule(m=pick)
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
    @rule(n=pick, deed=st.sampled_from(["write", "finish", "release"]), tokens=st.integers(1, 5))
    def ghost_acts(self, n: int, deed: str, tokens: int) -> None:
        hand, run = self.ghosts[n % len(self.ghosts)]
        run.generate(tokens)
        before = self.seen(run.id)
        owned = before["job"].get("nonce") == run.nonce
        running = owned and before["job"]["state"] == "running"
        if deed == "write":
            _, [kept] = hand.attempts.progress([run.advance()], hand.capacity)
            assert (kept.word == "ok") == running
        elif deed == "finish":
            self.end(hand, run, False, False)
        else:
            hand.attempts.release([(run.id, run.nonce)], "lost", "lost")
        if not (running or (owned and deed == "finish")):
            assert self.seen(run.id) == before, "a ghost changed a job that another has claimed"

    # The world

    @rule(milliseconds=st.sampled_from([100, 1000, 2500, 6000, 11_000, 40_000, 120_000]), silent=st.booleans())
    def time_passes(self, milliseconds: int, silent: bool) -> None:
        self.field.later(milliseconds, silent=silent)

    @rule()
    def server_forgets_scripts(self) -> None:
        self.jobs.client.script_flush()

    # What holds after every step

    @invariant()
    def all_is_in_its_place(self) -> None:
        jobs = check(self.field)
        assert set(jobs) == set(self.accepted), "a job was lost or made up"
        for job_id, job in jobs.items():
            if job_id in self.ended:
                assert self.end_of(job_id, job) == self.ended[job_id], f"{job_id} ended twice"
            elif job["state"] in ENDED:
                self.ended[job_id] = self.end_of(job_id, job)
        for name in self.jobs.client.scan_iter(f"{keys.PREFIX}vclock:*", count=1000):
            clock = float(self.jobs.client.get(name))
            assert clock >= self.clocks.get(name, 0), "virtual time fell"
            self.clocks[name] = clock

    def teardown(self) -> None:
        """Given workers and time, everything that was accepted ends."""
        if not self.hands:
            self.hands["barn"] = self.field.worker("barn")
        for _ in range(300):
            if all(self.field.state(job_id) in ENDED for job_id in self.accepted):
                break
            self.jobs.client.delete(keys.LEADER)
            self.field.later(700)
            for hand in self.hands.values():
                is_known, words = hand.attempts.progress([run.advance() for run in hand.runs.values()], hand.capacity)
                if not is_known:
                    hand.attempts.register(hand.name, hand.model, hand.capacity, "model", None)
                for run, kept in zip(list(hand.runs.values()), words, strict=True):
                    if kept.word == "lost":
                        del hand.runs[run.id]
                for job_id in list(hand.runs):
                    hand.finish(job_id, tokens=2)
            messages = self.keepers[0].keep().messages + self.keepers[0].dispatch().messages
            hands = list(self.hands.values())
            for n, message in enumerate(messages):
                hands[n % len(hands)].claim(message)
        jobs = check(self.field)
        assert {job["state"] for job in jobs.values()} <= set(ENDED), "some jobs never ended"
        assert set(jobs) == set(self.accepted)

    # Helpers

    def any_hand(self, m: int) -> Hand:
        return list(self.hands.values())[m % len(self.hands)]

    def any_run(self, m: int, n: int) -> tuple[Hand, Run]:
        busy = [hand for hand in self.hands.values() if hand.runs]
        hand = busy[m % len(busy)]
        return hand, list(hand.runs.values())[n % len(hand.runs)]

    def end(self, hand: Hand, run: Run, fails: bool, lost: bool) -> None:
        before = self.seen(run.id)
        may = before["job"]["nonce"] == run.nonce and before["job"]["state"] not in ENDED
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

    def end_of(self, job_id: str, job: dict[str, str]) -> dict[str, Any]:
        moved = {name: value for name, value in job.items() if name in FROZEN and name != "finished"}
        return {**moved, "tokens": indices(self.seen(job_id)["out"])}


def test_no_order_of_events_breaks_a_promise(jobs: Jobs) -> None:
    """No accepted job is lost, ends twice, mixes tokens of two owners or is miscounted, and everything ends."""
    profile = settings.get_profile(os.environ.get("LEDGER_PROFILE", "ledger"))
    run_state_machine_as_test(lambda: AnyOrder(jobs), settings=profile)
