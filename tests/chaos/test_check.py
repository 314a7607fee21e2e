"""The checker: a good history passes, and each promise that is broken is seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from farm import keys
from tests.chaos.census import Census, Said
from tests.chaos.check import check
from tests.chaos.evidence import Evidence, Violation
from tests.chaos.figures import figures
from tests.chaos.record import Asked, Begun, Call, Event, Gone, Heard, History, Recorder, Struck
from tests.chaos.schedule import Fault

pytestmark = pytest.mark.fast

WALL = 1_000_000.0
DAY = "1970-01-12"
TOKENS = list(range(100, 110))
TEXT = "".join(f" t{token}" for token in TOKENS)


class Story:
    """One job's run, good as it begins: two attempts, a stream that two clients share, a result, a status.

    Tests spoil it and see which rule says so.
    """

    def __init__(self, tmp_path: Path) -> None:
        self.recorder = Recorder(tmp_path / "history.jsonl", "kills", 1)
        self.job = {
            "state": "succeeded", "model": "m", "tenant": "chaos", "priority": "normal", "seq": "1", "attempt": "2",
            "worker": "w2-b", "created": str(ms(0.0)), "finished": str(ms(9.0)), "bytes": "300", "strikes": "0",
        }  # fmt: skip
        self.entries: list[list[Any]] = [[t, f" t{t}", 1.0 if n < 4 else 2.0, []] for n, t in enumerate(TOKENS)]
        self.attempts = [attempt(1, "w1-a", 1.0, 5.0, "lease_ended", 4), attempt(2, "w2-b", 6.0, 9.0, "finish", 6)]
        self.totals = {"submitted": "1", "succeeded": "1"}
        self.more: dict[str, Any] = {}
        self.said = [Said("w2", "j", 2, "succeeded", "finish")]
        self.left: dict[str, Any] = {}
        self.events: list[Event] = [
            Asked(0.0, "j", "prompt", 10),
            Call(0.0, 0.1, "c1", "submit", ("j",), 2.0),
            Call(0.5, 0.1, "c2", "status", ("j",), 2.0, state="running", tokens=(100,), text=" t100"),
            Heard(2.0, 7, "j", 4, tuple(TOKENS[:4]), TEXT[: len(" t100") * 4]),
            Call(1.0, 1.2, "c1", "stream", ("j",)),
            Heard(8.0, 8, "j", 10, tuple(TOKENS[4:]), TEXT[len(" t100") * 4 :]),
            Call(3.0, 6.2, "c2", "stream", ("j",), state="succeeded"),
            Call(2.0, 3.0, "c3", "result", ("j",), 3.0, error="timeout"),
            Call(9.1, 0.1, "c3", "result", ("j",), 3.0, state="succeeded", tokens=tuple(TOKENS), text=TEXT),
            Gone(3.0, "w1", -9, "kill", True),
        ]

    def replace(self, kind: type[Event], **values: Any) -> None:
        """Change the last event of a kind."""
        at = max(n for n, event in enumerate(self.events) if isinstance(event, kind))
        self.events[at] = replace(self.events[at], **values)

    def call(self, op: str, t: float, took_s: float = 0.1, **values: Any) -> None:
        self.events.append(Call(t, took_s, "c9", op, ("j",), values.pop("limit_s", 2.0), **values))

    def judge(self) -> tuple[Evidence, list[Violation]]:
        for event in self.events:
            self.recorder.add(event)
        self.recorder.close()
        world = {
            keys.job("j"): self.job,
            keys.out("j"): [json.dumps(entry) for entry in self.entries],
            keys.history("j"): [json.dumps(attempt) for attempt in self.attempts],
            keys.kept("chaos"): {"j|300": float(self.job.get("finished", 0))},
            keys.PREFIX + "kept_oldest": {"chaos": float(self.job.get("finished", 0))},
            keys.KEPT_NEWEST: {"chaos": float(self.job.get("finished", 0))},
            keys.PREFIX + "kept_jobs": {"chaos": 1.0},
            keys.PREFIX + "kept_bytes": {"chaos": 300.0},
            keys.PREFIX + "kept_all": {"jobs": "1", "bytes": "300"},
            keys.jobs("chaos"): {"j": 1.0},
            keys.used(DAY): ["chaos"],
            keys.usage("chaos", DAY): {self.job["state"]: "1", "completion_tokens": str(len(self.entries))},
            keys.counts("m"): {"queued": "0", "dispatched": "0", "running": "0"},
            keys.TOTALS: self.totals,
            keys.PREFIX + "tally": {
                **{f"{name}:m": count for name, count in self.totals.items()},
                "completion:m": str(len(self.entries)),
            },
            **self.more,
        }
        census = Census({k: v for k, v in world.items() if v is not None}, self.said, **{"made": 10, **self.left})
        told = Evidence(self.recorder.history, census, lambda asked: (TOKENS[: asked.max_tokens], TEXT))
        return told, check(told)


def ms(seconds: float) -> int:
    return int((WALL + seconds) * 1000)


def attempt(number: int, worker: str, start: float, end: float, reason: str, tokens: int) -> dict[str, Any]:
    return {
        "attempt": number,
        "worker": worker,
        "started_at": WALL + start,
        "ended_at": WALL + end,
        "reason": reason,
        "tokens": tokens,
    }


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path)


def test_a_good_history_passes(story: Story) -> None:
    """A job that was resumed, streamed from two places and waited for breaks no promise."""
    told, violations = story.judge()
    assert not violations, "\n".join(map(str, violations))
    found = figures(told, violations)
    assert (found.acknowledged, found.succeeded, found.lost, found.duplicated, found.repeated) == (1, 1, 0, 0, 0.0)


def the_ledger_forgets(story: Story) -> None:
    gone = (keys.job("j"), keys.out("j"), keys.history("j"), keys.kept("chaos"), keys.KEPT_NEWEST)
    story.more = dict.fromkeys(
        (*gone, *(keys.PREFIX + name for name in ("kept_oldest", "kept_jobs", "kept_bytes", "kept_all")))
    )
    story.totals, story.said = {}, []


def it_never_ends(story: Story) -> None:
    story.job["state"] = "running"


def a_client_is_told_it_is_unknown(story: Story) -> None:
    story.call("status", 1.0, error="job_not_found")


def nobody_asked(story: Story) -> None:
    story.events = []


def a_client_sees_another_end(story: Story) -> None:
    story.call("result", 9.3, state="cancelled", tokens=(), text="")


def a_client_gets_another_text(story: Story) -> None:
    story.call("result", 9.3, state="succeeded", tokens=tuple(TOKENS), text=TEXT + "!")


def it_rises_from_its_end(story: Story) -> None:
    story.call("status", 9.5, state="running", tokens=tuple(TOKENS))


def nobody_cancelled(story: Story) -> None:
    story.job["state"] = "cancelled"


def it_fails(story: Story) -> None:
    story.job["state"] = "failed"


def it_expires_too_early(story: Story) -> None:
    story.job["state"] = "expired"
    story.events[0] = Asked(0.0, "j", "prompt", 10, deadline_s=30.0)


def it_is_given_up_after_one_loss(story: Story) -> None:
    story.job["state"] = "dead"


def a_token_is_doubled(story: Story) -> None:
    story.entries.insert(4, story.entries[3])


def a_token_is_missing(story: Story) -> None:
    del story.entries[5]


def it_is_cut_short(story: Story) -> None:
    del story.entries[-1]


def a_cancelled_text_is_wrong(story: Story) -> None:
    story.job["state"] = "cancelled"
    story.call("cancel", 9.0, state="cancelled")
    story.entries = [[7, " t7", 1.0, []]]


def a_stream_repeats(story: Story) -> None:
    story.events.append(Heard(8.1, 8, "j", 10, tuple(TOKENS[8:]), ""))


def a_stream_skips(story: Story) -> None:
    story.replace(Heard, tokens=tuple(TOKENS[5:]), text="")
    story.events.insert(5, Heard(7.0, 8, "j", 4, (TOKENS[3],), ""))


def a_stream_says_something_else(story: Story) -> None:
    story.replace(Heard, tokens=(1, 2, 3, 4, 5, 6))


def a_stream_lacks_its_end(story: Story) -> None:
    story.replace(Heard, text="")


def an_old_worker_writes(story: Story) -> None:
    story.entries[7][2] = 1.0


def two_attempts_overlap(story: Story) -> None:
    story.attempts[1]["started_at"] = WALL + 4.0


def an_attempt_is_missing(story: Story) -> None:
    story.attempts[1]["attempt"] = 3


def the_sums_are_wrong(story: Story) -> None:
    story.totals["succeeded"] = "2"
    story.totals["submitted"] = "2"


def two_attempts_finish(story: Story) -> None:
    story.said.append(Said("w1", "j", 1, "succeeded", "finish"))


def a_waiter_is_forgotten(story: Story) -> None:
    story.call("stream", 2.0, 60.0, limit_s=None, error="farm_error")


def a_call_raises(story: Story) -> None:
    story.call("cancel", 2.0, error="invalid_request")


def a_call_hangs(story: Story) -> None:
    story.call("result", 0.0, 9.0, limit_s=5.0, error="timeout")


def a_cancel_is_undone(story: Story) -> None:
    story.call("cancel", 2.0, state="cancelled")


def a_counter_is_wrong(story: Story) -> None:
    story.more[keys.counts("m")] = {"running": "1"}


def a_set_still_holds_it(story: Story) -> None:
    story.more[keys.held("w1-a")] = ["j"]


def keys_stay(story: Story) -> None:
    story.left["leaked"] = [keys.out("j")]


def a_worker_falls(story: Story) -> None:
    story.events.append(Gone(4.0, "w2", 1, "", True))


def a_drain_fails(story: Story) -> None:
    story.events.append(Gone(4.0, "w2", -15, "terminate", True, 0.1))


def a_worker_does_not_leave(story: Story) -> None:
    story.left["late"] = ["w2"]


def an_engine_is_orphaned(story: Story) -> None:
    story.left["orphans"] = [4711]


SPOILED: list[tuple[Callable[[Story], None], str]] = [
    (the_ledger_forgets, "lost"),
    (it_never_ends, "lost"),
    (a_client_is_told_it_is_unknown, "lost"),
    (nobody_asked, "made up"),
    (a_client_sees_another_end, "two ends"),
    (a_client_gets_another_text, "two ends"),
    (it_rises_from_its_end, "two ends"),
    (nobody_cancelled, "unearned end"),
    (it_fails, "unearned end"),
    (it_expires_too_early, "unearned end"),
    (it_is_given_up_after_one_loss, "unearned end"),
    (a_token_is_doubled, "wrong tokens"),
    (a_token_is_missing, "wrong tokens"),
    (it_is_cut_short, "wrong tokens"),
    (a_cancelled_text_is_wrong, "wrong tokens"),
    (a_stream_repeats, "broken stream"),
    (a_stream_skips, "broken stream"),
    (a_stream_says_something_else, "broken stream"),
    (a_stream_lacks_its_end, "broken stream"),
    (an_old_worker_writes, "stale write"),
    (two_attempts_overlap, "stale write"),
    (an_attempt_is_missing, "stale write"),
    (the_sums_are_wrong, "counted twice"),
    (two_attempts_finish, "counted twice"),
    (a_waiter_is_forgotten, "unheard"),
    (a_call_raises, "unheard"),
    (a_call_hangs, "slow call"),
    (a_cancel_is_undone, "broken cancel"),
    (a_counter_is_wrong, "ledger disagrees"),
    (a_set_still_holds_it, "ledger disagrees"),
    (keys_stay, "leaked keys"),
    (a_worker_falls, "broken worker"),
    (a_drain_fails, "broken worker"),
    (a_worker_does_not_leave, "broken worker"),
    (an_engine_is_orphaned, "broken worker"),
]


@pytest.mark.parametrize(("spoil", "rule"), SPOILED, ids=[spoil.__name__ for spoil, _ in SPOILED])
def test_a_broken_promise_is_seen(story: Story, spoil: Callable[[Story], None], rule: str) -> None:
    """Each way to break a promise is found by its rule, and the finding says what happened."""
    spoil(story)
    _, violations = story.judge()
    assert rule in {violation.rule for violation in violations}
    assert all(violation.reason for violation in violations)


def test_a_stream_may_be_left_and_a_late_finish_counts(story: Story) -> None:
    """A worker that lost its lease may still end a job that nobody else has claimed, with the tokens it has."""
    story.attempts = [attempt(1, "w1-a", 1.0, 5.0, "lease_ended", 4)]
    story.job["attempt"] = "1"
    story.entries = [[t, f" t{t}", 1.0, []] for t in TOKENS]
    story.said = [Said("w1", "j", 1, "succeeded", "finish")]
    _, violations = story.judge()
    assert not violations, "\n".join(map(str, violations))


def test_recovery_is_counted_from_the_fault(story: Story) -> None:
    """The time to run again is from the kill of the worker that held a job to its next claim."""
    story.events.append(Struck(3.0, Fault(3.0, "lose-worker", "w1"), "w1-a", ("j",)))
    story.recorder.history.events[0] = Begun(WALL, "kills", 1)
    told, violations = story.judge()
    found = figures(told, violations)
    assert (found.worker_recovery_p99_s, found.worker_recoveries, found.attempts) == (3.0, 1, 2)


def test_a_history_survives_its_file(story: Story, tmp_path: Path) -> None:
    """What was recorded is read again as it was, but for a line that a kill cut off."""
    story.events.append(Struck(3.0, Fault(3.0, "lose-worker", "w1"), "w1-a", ("j",)))
    told, _ = story.judge()
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"is": "Call", "t": 1')
    assert History.read(tmp_path / "history.jsonl") == told.history
    told.census.write(tmp_path / "census.json")
    assert Census.read(tmp_path / "census.json") == told.census
