"""A farm in miniature under a state machine: its jobs, workers and messages, what is done to them, what must hold."""

from __future__ import annotations

import sys
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from farm import keys
from farm.contracts import Request
from farm.ledger.attempts import Advance, Claim, Refusal
from farm.ledger.jobs import Jobs
from farm.ledger.records import Submission
from farm.ledger.upkeep import Dispatch, Upkeep
from tests.integration.ledger.farmhand import ENDED, Field, Hand, Run, failed, indices, succeeded
from tests.integration.ledger.invariants import check

FROZEN = ("state", "closed_by", "error", "finish_reason", "attempt", "nonce", "tail", "strikes", "losses")
picks = st.integers(0, 1000)


class World(RuleBasedStateMachine):
    """Producers, workers, two keepers, a broker that loses and doubles messages, and time."""

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

    # What rules are made of

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
