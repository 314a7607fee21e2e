"""Dead jobs by hand, for a state machine: how they come to be, and retries and purges that may be repeated."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
)

from farm import keys
from farm.ledger import dead
from tests.integration.ledger.world import World, picks


class ByHand(World):
    """Whoever looks after dead jobs."""

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
