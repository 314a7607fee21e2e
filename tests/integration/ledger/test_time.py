"""What time brings: leases, silence, messages nobody claims, retention, and keepers that come and go."""

from __future__ import annotations

import pytest

from farm import keys
from farm.contracts import JobState
from farm.ledger.attempts import Attempts
from farm.ledger.jobs import Jobs
from farm.ledger.upkeep import Upkeep
from farm.settings import load_settings
from tests.integration.ledger.farmhand import MODEL, Field

LEASE_MS = 10_000


def test_a_silent_workers_jobs_move_when_its_lease_ends(field: Field) -> None:
    """A dead worker's jobs are queued again one lease after its last beat, and not before."""
    [job] = field.submit()
    hand, other = field.worker(), field.worker("mill")
    field.run(hand, job)
    hand.write(job, 1)
    field.later(LEASE_MS - 1000)
    other.beat()
    assert field.keep().leases_ended == 0
    field.later(1001)
    assert field.keep().leases_ended == 1
    assert field.state(job) == "queued"
    assert field.view(job).history[0].reason == "lease_ended"


def test_a_dead_worker_loses_all_its_jobs_at_once(field: Field) -> None:
    """A job claimed after its worker's last beat does not wait for a lease of its own: who was aboard is seen whole."""
    jobs = field.submit(2)
    hand, other = field.worker(), field.worker("mill")
    field.run(hand, jobs[0])
    hand.beat()
    field.client.zadd(f"{keys.PREFIX}running", {jobs[0]: 0})
    field.later(LEASE_MS)
    other.beat()
    field.dispatch()
    hand.claim(field.mail[jobs[1]])
    assert field.keep().leases_ended == 2


@pytest.mark.parametrize("first", ["keeper", "worker"])
def test_after_a_silence_of_the_server_workers_get_a_lease_to_come_back(field: Field, first: str) -> None:
    """A server that was silent longer than a lease takes no job from anyone, and strikes nobody, for one more lease."""
    [job] = field.submit()
    hand = field.worker()
    run = field.run(hand, job)
    hand.beat()
    field.later(8000 + LEASE_MS, silent=True)
    if first == "worker":
        field.worker("mill").beat()
    assert field.keep().leases_ended == 0
    field.later(LEASE_MS - 1000)
    assert field.keep().leases_ended == 0
    assert field.view(job).strikes == 0
    run.generate(2)
    assert hand.beat()[job].word == "ok"
    field.later(2000)
    assert field.keep().leases_ended == 0
    hand.finish(job)
    assert field.view(job).attempt == 1


def test_a_worker_that_died_in_the_silence_loses_its_jobs_after_the_grace(field: Field) -> None:
    """The grace ends: a worker that has not come back within a lease is dead."""
    [job] = field.submit()
    field.run(field.worker(), job)
    field.later(60_000, silent=True)
    field.keep()
    field.later(LEASE_MS + 1)
    assert field.keep().leases_ended == 1


def test_no_silence_no_grace(field: Field) -> None:
    """While anybody beats, leases end on time."""
    [job] = field.submit()
    hand, other = field.worker(), field.worker("mill")
    field.run(hand, job)
    for _ in range(10):
        field.later(1001)
        other.beat()
    assert field.keep().leases_ended == 1


def test_a_lost_claim_answer_strikes_nobody(field: Field) -> None:
    """A living worker that never heard that its claim was granted loses the job at the lease's end, but did not die."""
    [job] = field.submit()
    hand = field.worker()
    [message] = field.dispatch()
    for _ in range(4):
        hand.attempts.claim(message.id, message.number)
        field.later(LEASE_MS + 1)
        hand.beat()
        field.keep()
        assert field.view(job).strikes == 0
        [message] = field.dispatch()
    assert field.state(job) == "dispatched"


def test_an_unclaimed_message_goes_out_again_and_then_starts_over(field: Field) -> None:
    """A lost message goes out again after 2, 4 and 8 s under its number; then its job is queued at its old place."""
    [job] = field.submit()
    [later_job] = field.submit()
    hand = field.worker(capacity=1)
    field.dispatch()
    for wait in (2000, 4000, 8000):
        field.later(wait - 100)
        assert [message.id for message in field.keep().messages] == []
        field.later(101)
        again = field.keep()
        assert {(message.id, message.number) for message in again.messages} == {(job, 1), (later_job, 1)}
        assert again.republished == 2
    field.later(16_001)
    assert field.keep().messages == []
    assert field.state(job) == "queued"
    hand.beat()
    assert [(message.id, message.number) for message in field.dispatch()] == [(job, 2), (later_job, 2)]
    assert field.client.hget(keys.TOTALS, "republished") == "6"


def test_with_nobody_alive_nothing_more_is_published(field: Field) -> None:
    """When consumers are dead, messages stop after three repetitions instead of filling the broker."""
    field.submit(20)
    field.worker(capacity=4)
    sent = len(field.dispatch())
    for _ in range(100):
        field.later(5000)
        sent += len(field.keep().messages) + len(field.dispatch())
    assert sent == 6 * 4, "capacity 4 and margin 2, each sent once and repeated three times"


def test_one_keeper_leads(field: Field) -> None:
    """While one keeper holds the lead another does nothing; it takes over when the lead is given up or runs out."""
    first, second = Upkeep(field.jobs), Upkeep(field.jobs)
    field.submit(1)
    field.worker()
    assert first.keep().is_leader
    before = field.dump()
    assert not second.keep().is_leader
    assert not second.dispatch().is_leader
    assert field.dump() == before
    second.resign()
    assert not second.keep().is_leader, "only the holder may give the lead up"
    first.resign()
    assert second.keep().is_leader
    field.later(1001)
    assert first.dispatch().is_leader


def test_a_keeper_that_wakes_up_as_second_leader_does_no_harm(field: Field) -> None:
    """Two keepers that both believe they lead dispatch no job twice and fill no worker beyond its room."""
    field.submit(20)
    field.worker(capacity=4)
    sent: list[str] = []
    for _ in range(3):
        for keeper in (Upkeep(field.jobs), Upkeep(field.jobs)):
            field.client.delete(keys.LEADER)
            keeper.keep()
            sent += [message.id for message in keeper.dispatch().messages]
    assert len(sent) == len(set(sent)) == 6


def ended(field: Field, count: int) -> list[str]:
    jobs = []
    hand = field.worker(capacity=count)
    for _ in range(count):
        [job] = field.submit()
        field.run(hand, job)
        hand.finish(job, tokens=1)
        field.later(10)
        jobs.append(job)
    return jobs


def test_finished_jobs_go_when_their_time_is_over(field: Field) -> None:
    """A result is kept for retention_s, then job, tokens, history and all mention of it are gone."""
    [job] = ended(field, 1)
    [dead] = field.submit()
    field.jobs.cancel([dead])
    field.later(86_399_000)
    field.keep()
    assert field.view(job).state is JobState.SUCCEEDED
    field.later(1001)
    field.keep()
    assert [key for key in field.dump() if job in key or dead in key] == []
    assert field.client.zcard(keys.KEPT_NEWEST) == 0
    assert field.client.hgetall(f"{keys.PREFIX}kept_all") == {"jobs": "0", "bytes": "0"}


def test_finished_jobs_outlive_their_farm_by_no_more_than_an_hour(field: Field) -> None:
    """With no keeper left, the server itself drops them."""
    [job] = ended(field, 1)
    for key in (keys.job(job), keys.out(job), keys.history(job)):
        assert 86_400_000 < field.client.pttl(key) <= 86_400_000 + 3_600_000


def test_a_job_that_has_not_ended_never_expires_from_memory(field: Field) -> None:
    """No key of a job has a TTL before its end, so that nothing refers to a job that is gone."""
    jobs = field.submit(3, deadline_s=60)
    hand = field.worker(capacity=1)
    field.run(hand, jobs[0])
    hand.write(jobs[0], 1)
    for key in field.client.scan_iter(f"{keys.PREFIX}*"):
        assert field.client.pttl(key) == -1 or key == keys.LEADER


@pytest.mark.parametrize("limits", [{"max_finished": 3}, {"max_finished_bytes": 1 << 20}])
def test_the_oldest_results_go_first_when_there_are_too_many(field: Field, limits: dict[str, int]) -> None:
    """Count and bytes of finished jobs are bounded; the newest stay."""
    settings = load_settings(redis={"url": field.jobs.settings.redis.url}, limits=limits)
    field.jobs = Jobs(settings, field.client)
    field.keeper = Upkeep(field.jobs)
    done = []
    for n in range(5):
        [job] = field.submit(prompt=f"{n}" * 400_000)
        field.jobs.cancel([job])
        field.later(10)
        done.append(job)
    field.keep()
    kept = [job for job in done if field.state(job)]
    assert kept == done[-(limits.get("max_finished") or 2) :]


def test_orphans_are_skipped_and_removed(field: Field) -> None:
    """Places that speak of jobs that are gone stop no keeper, and are cleared."""
    [job] = field.submit()
    field.worker(capacity=1)
    gone = {f"{keys.PREFIX}{name}": {"ghost": 0} for name in ("delayed", "dispatched", "running", "deadlines")}
    gone[keys.UNDELIVERED] = {"ghost": 0}
    gone[keys.queue(MODEL, "normal", "default")] = {"ghost": -1}
    gone[keys.queue(MODEL, "normal", "nobody")] = {"ghost": 0}
    for key, members in gone.items():
        field.client.zadd(key, members)
    field.client.zadd(keys.lanes(MODEL, "normal"), {"nobody": 0, "emptied": 0})
    field.client.hset(f"{keys.PREFIX}vtime:{MODEL}", mapping={"nobody": 0, "emptied": 0})
    field.keep()
    assert [message.id for message in field.dispatch()] == [job]
    for key in gone:
        assert field.client.zscore(key, "ghost") is None, key


def test_a_worker_silent_for_long_is_forgotten(field: Field) -> None:
    """Ten leases after its last beat a worker is gone from the list, whatever it seemed to hold."""
    hand = field.worker()
    field.client.sadd(keys.held(hand.attempts.worker), "ghost")
    field.later(10 * LEASE_MS + 1)
    field.keep()
    field.keep()
    assert field.client.zcard(keys.WORKERS) == 0
    assert field.client.exists(keys.worker(hand.attempts.worker)) == 0
    assert hand.attempts.progress([], 2)[0] is False, "it must hear that it has to register again"


def test_a_plain_jobs_end_is_delivered_until_its_result_is_stored(field: Field) -> None:
    """A plain Celery job that ended without its worker is published again, so that its caller is answered."""
    [job] = field.submit(plain="{}")
    hand = field.worker()
    field.run(hand, job)
    field.jobs.cancel([job])
    [message] = field.keep().messages
    assert (message.id, message.plain) == (job, "{}")
    assert field.keep().messages == []
    field.later(5000)
    assert len(field.keep().messages) == 1
    field.client.zrem(keys.UNDELIVERED, job)
    field.later(3_600_000)
    assert field.keep().messages == []


def test_a_worker_that_was_never_registered_gets_nothing(field: Field) -> None:
    """A worker that the ledger does not know is not given jobs: it could not be watched."""
    field.submit()
    field.worker()
    [message] = field.dispatch()
    stranger = Attempts(field.jobs, "stranger")
    refusal = stranger.claim(message.id, message.number)
    assert getattr(refusal, "reason", None) == "unregistered"
    assert field.state(message.id) == "queued"
    assert field.client.exists(keys.worker("stranger")) == 0
