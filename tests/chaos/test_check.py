"""The checker: a good history passes, and each promise that is broken is seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from farm import keys
from tests.chaos.census import Census, Said
from tests.chaos.figures import figures
from tests.chaos.record import Asked, Begun, Gone, Heard, History, Struck
from tests.chaos.schedule import Fault
from tests.chaos.story import TEXT, TOKENS, WALL, Story, attempt

pytestmark = pytest.mark.fast


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
    story.more = {keys.job("j"): None, keys.out("j"): None, keys.history("j"): None, keys.FINISHED: {}}
    story.more |= {keys.PREFIX + "finished_bytes": "0"}
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
