"""What the ledger says of itself is exact, and cheap to ask however long the queue is."""

from __future__ import annotations

from farm.ledger.gauges import OTHERS, Gauges, ModelGauges, read_gauges
from tests.integration.ledger.farmhand import MODEL, Field


def model(seen: Gauges) -> ModelGauges:
    [found] = [one for one in seen.models if one.name == MODEL]
    return found


def test_depth_and_age_by_priority(field: Field) -> None:
    """Queued, delayed and dispatched jobs wait; running ones don't. The oldest is found wherever it waits."""
    hand = field.worker(capacity=2)
    field.submit(1, priority="high")
    delayed, running = field.submit(2)
    for job in (delayed, running):
        field.run(hand, job)
    hand.release("retry", "busy", [delayed], wait_s=500)
    field.later(7_000)
    field.submit(3, priority="low", tenant="ann")
    hand.beat()
    seen = model(read_gauges(field.jobs))
    assert seen.depth == {"high": 1, "normal": 1, "low": 3}
    assert seen.in_state["running"] == 1
    assert seen.age_s["high"] >= 7
    assert seen.age_s["normal"] >= 7
    assert seen.age_s["low"] < 5


def test_the_oldest_of_many_tenants(field: Field) -> None:
    """The oldest of 200 tenants' jobs is found, whichever tenant goes first."""
    for number in range(200):
        field.submit(1, tenant=f"t{number}")
    field.later(9_000)
    field.jobs.cancel([field.submit(1, tenant="late")[0]])
    assert model(read_gauges(field.jobs)).age_s["normal"] >= 9


def test_counters_count_deeds(field: Field) -> None:
    """Submissions, ends, releases, retries, lost leases and useless messages are each counted once."""
    hand = field.worker(capacity=8)
    done, retried, lost, cancelled = field.submit(4)
    for job in (done, retried, lost):
        field.run(hand, job)
    hand.write(done, 3)
    hand.finish(done)
    hand.release("retry", "busy", [retried])
    field.jobs.cancel([cancelled, cancelled])
    for _ in range(2):
        hand.attempts.claim(done, 1, "one nonce")
    hand.attempts.claim("nobody", 1)
    field.later(60_000, silent=False)
    field.keep()
    seen = read_gauges(field.jobs)
    assert seen.tally[f"submitted:{MODEL}"] == 4
    assert seen.tally[f"succeeded:{MODEL}"] == seen.tally[f"cancelled:{MODEL}"] == 1
    assert seen.tally[f"completion:{MODEL}"] == 3
    assert (seen.totals["released:busy"], seen.totals["retried"]) == (1, 1)
    assert (seen.totals["released:lease_ended"], seen.totals["leases_lost"]) == (1, 1)
    assert (seen.totals["dropped:ended"], seen.totals["dropped:unknown"]) == (1, 1)


def test_the_largest_tenants_are_named(field: Field) -> None:
    """Fifty tenants are named, the largest, and the rest are one; idle ones are not there at all."""
    for number in range(53):
        field.submit(1 if number >= 3 else 2, tenant=f"t{number}")
    waiting = read_gauges(field.jobs).waiting_jobs
    assert len(waiting) == 51
    assert {waiting["t0"], waiting["t1"], waiting["t2"]} == {2}
    assert waiting[OTHERS] == 3
    for job in field.jobs.client.zrange("{farm}:jobs:t0", 0, -1):
        field.jobs.cancel([job])
    assert "t0" not in read_gauges(field.jobs).waiting_jobs


def test_tokens_of_today(field: Field) -> None:
    """A tenant's tokens of the day are prompt and completion of what ended, however it ended."""
    hand = field.worker(capacity=8)
    for tenant, tokens in (("ann", 5), ("ben", 2)):
        [job] = field.submit(1, tenant=tenant)
        field.run(hand, job)
        hand.write(job, tokens)
        hand.finish(job)
    seen = read_gauges(field.jobs)
    prompts = seen.tally[f"prompt:{MODEL}"]
    assert seen.tokens_today["ann"] - seen.tokens_today["ben"] == 3
    assert sum(seen.tokens_today.values()) == 7 + prompts


def test_workers_by_state(field: Field) -> None:
    """A worker is ready, in trouble, draining or silent; slots are those of workers that live and take jobs."""
    ready, draining = field.worker("a", 4), field.worker("b", 4)
    field.worker("c", 4)
    troubled = field.worker("d", 0)
    field.later(60_000)
    ready.beat()
    draining.attempts.progress([], 4, draining=True)
    troubled.attempts.progress([], 0, trouble="engine starting again: it died")
    seen = read_gauges(field.jobs)
    assert seen.workers == {(MODEL, "model", state): 1 for state in ("ready", "draining", "silent", "trouble")}
    assert model(seen).slots == 4


def test_a_long_queue_costs_no_more(field: Field) -> None:
    """With 20,000 jobs of 400 tenants waiting, the reading is a script of a few milliseconds, as with none."""
    field.jobs.client.config_set("slowlog-log-slower-than", 20_000)
    field.jobs.client.slowlog_reset()
    for tenant in range(400):
        field.submit(50, tenant=f"t{tenant}")
    for _ in range(3):
        assert sum(model(read_gauges(field.jobs)).depth.values()) == 20_000
    slow = [entry for entry in field.jobs.client.slowlog_get() if b"EVAL" in bytes(str(entry["command"]), "utf-8")]
    assert slow == []
