"""Webhooks in the ledger: due from the moment of an end, called at least once, in lanes that don't delay each other."""

from __future__ import annotations

from collections import Counter

import pytest

from farm import keys
from farm.batch_contracts import COMPLETIONS, BatchRequest
from farm.ledger.batches import Batches
from farm.ledger.driving import Driving
from farm.ledger.files import Files
from farm.ledger.scripts import sha
from farm.ledger.webhooks import Due, Outbox, pause_s
from farm.local.environ import with_values
from farm.results import WebhookView
from tests.integration.ledger.farmhand import Field

URL = "https://example.com/hook"


def ended(field: Field, count: int = 1, url: str = URL, **more: object) -> list[str]:
    """Jobs with a webhook that have ended."""
    made = field.submit(count, webhook_url=url, **more)
    field.jobs.cancel(made)
    return made


def hook(field: Field, job_id: str) -> WebhookView:
    webhook = field.view(job_id).webhook
    assert webhook is not None
    return webhook


@pytest.fixture
def outbox(field: Field) -> Outbox:
    return Outbox(field.jobs)


def take(outbox: Outbox, most: int = 100, busy: dict[str, int] | None = None) -> list[Due]:
    return outbox.take(most, busy or {})


def test_a_webhook_is_due_when_its_job_ends_and_not_before(field: Field, outbox: Outbox) -> None:
    """Whatever the end: succeeded, cancelled, expired, dead; jobs without a webhook are never due."""
    plain, done, cancelled, late, doomed = (
        *field.submit(),
        *field.submit(3, webhook_url=URL, deadline_s=90),
        *field.submit(webhook_url=URL),
    )
    assert hook(field, done).state == "waiting"
    assert take(outbox) == []
    hand = field.worker(capacity=8)
    field.run(hand, plain)
    hand.finish(plain, 2)
    field.run(hand, done)
    hand.finish(done, 2)
    field.jobs.cancel([cancelled])
    for _ in range(3):
        field.run(hand, doomed)
        hand.release("lost", "engine_lost", [doomed])
    field.later(90_001)
    field.keep()
    assert {due.member for due in take(outbox)} == {f"job:{job}" for job in (done, cancelled, late, doomed)}
    assert [field.state(job) for job in (done, cancelled, late, doomed)] == [
        "succeeded",
        "cancelled",
        "expired",
        "dead",
    ]
    assert take(outbox) == []


def test_a_call_that_nobody_hears_of_is_made_again(field: Field, outbox: Outbox) -> None:
    """A sender that dies loses what it took after a while, and not before a call may have ended."""
    [job] = ended(field)
    [first] = take(outbox)
    field.later(1000 * field.jobs.settings.webhooks.timeout_s)
    assert take(outbox) == []
    field.later(60_000)
    [second] = take(outbox)
    assert (second.message_id, second.tries) == (first.message_id, 1)
    assert second.token != first.token
    # The first sender was only slow: its failure no longer counts, its success would.
    assert outbox.note(first, "retry", error="no answer in time") == ""
    assert outbox.note(first, "delivered", status=200) == "delivered"
    assert outbox.note(second, "retry", status=500) == ""
    assert (hook(field, job).state, hook(field, job).tries) == ("delivered", 2)


def test_a_message_is_named_after_what_ended(field: Field, outbox: Outbox) -> None:
    """The kind of what ended stands in its message's id once, then which of its ends this is."""
    [job] = ended(field)
    Files(field.jobs).add("file-1", "default", "files/1", filename="in.jsonl", purpose="batch", size=9)
    batch = Batches(field.jobs).add(
        BatchRequest(input_file_id="file-1", endpoint=COMPLETIONS, webhook_url=URL), "default"
    )
    driving = Driving(field.jobs, "barn")
    drive = driving.take()
    assert drive is not None
    driving.end(drive, "completed", [])
    assert {due.message_id for due in take(outbox)} == {f"job_{job}_1", f"{batch.id}_1"}
    assert batch.id.startswith("batch_")


def test_a_failing_receiver_is_tried_for_a_day(field: Field, outbox: Outbox) -> None:
    """The waits grow threefold up to six hours; then the webhook has failed, and its last ten calls are told."""
    [job] = ended(field)
    gone_ms, tries, ids = 0.0, 0, set()
    while hook(field, job).state == "pending":
        found = take(outbox)
        if not found:
            step = 250 if gone_ms < 30_000 else 5_000 if gone_ms < 3_600_000 else 60_000
            field.later(step)
            gone_ms += step
            continue
        [due] = found
        ids.add(due.message_id)
        outbox.note(due, "retry", status=503, duration_s=0.25)
        tries += 1
    view = hook(field, job)
    assert (view.state, view.tries, len(view.calls)) == ("failed", tries, 10)
    assert 10 <= tries <= 14
    assert 16 * 3_600_000 <= gone_ms <= 24 * 3_600_000
    assert len(ids) == 1
    assert {call.status for call in view.calls} == {503}
    assert take(outbox) == []
    assert not field.client.exists(keys.WEBHOOKS)


def test_waits_grow_and_differ(field: Field) -> None:
    """Each wait is about three times the one before, a fifth more or less, and never more than the cap by more."""
    settings = field.jobs.settings.webhooks
    for tries in range(80):
        usual = min(21_600, 5 * 3**tries)
        waits = {pause_s(settings, tries) for _ in range(20)}
        assert len(waits) > 1
        assert all(0.8 * usual <= wait <= 1.2 * usual for wait in waits)


def test_a_receiver_may_ask_to_be_left_alone_or_to_be_called_no_more(field: Field, outbox: Outbox) -> None:
    """Retry-After lengthens a wait; 410 ends the calls."""
    job, other = ended(field, 2)
    dues = {due.member: due for due in take(outbox)}
    outbox.note(dues[f"job:{job}"], "retry", status=429, least_wait_s=600)
    assert outbox.note(dues[f"job:{other}"], "refused", status=410) == "failed"
    field.later(599_000)
    assert take(outbox) == []
    field.later(2_000)
    assert [due.member for due in take(outbox)] == [f"job:{job}"]


def test_a_lane_that_is_slow_leaves_room_for_others(field: Field, outbox: Outbox) -> None:
    """One receiver gets an eighth of the calls at once, one tenant a quarter, however much it has waiting."""
    ended(field, 40, url="https://slow.example/", tenant="ann")
    ended(field, 40, url="https://slower.example/", tenant="ann")
    ended(field, 40, url="https://slowest.example/", tenant="ann")
    ended(field, 2, tenant="ben")
    found = take(outbox, 32)
    by_tenant = [due.tenant for due in found]
    lanes = {due.lane for due in found if due.tenant == "ann"}
    assert (by_tenant.count("ann"), by_tenant.count("ben"), len(lanes)) == (8, 2, 2)
    assert all(sum(due.lane == lane for due in found) == 4 for lane in lanes)
    # While those calls are under way nothing more of ann's goes out, and what ben gets next goes at once.
    busy = dict.fromkeys(lanes, 4)
    field.later(1_000)
    assert take(outbox, 22, busy) == []
    ended(field, 1, tenant="ben")
    assert [due.tenant for due in take(outbox, 22, busy)] == ["ben"]


def test_many_lanes_of_a_tenant_delay_nobody_elses(field: Field, outbox: Outbox) -> None:
    """While a tenant's calls all hang, its 3,000 other receivers cost nobody a turn, and no call of the script 5 ms."""
    many = [f"https://slow-{number}.example/" for number in range(3000)]
    field.jobs.submit([field.place(tenant="ann", webhook_url=url) for url in many])
    ids = field.jobs.client.zrange(keys.jobs("ann"), 0, -1)
    for start in range(0, len(ids), 100):
        field.jobs.cancel(ids[start : start + 100])
    [job] = ended(field, tenant="ben")
    field.jobs.client.config_set("slowlog-log-slower-than", 5_000)
    field.jobs.client.slowlog_reset()
    first = take(outbox, 32)
    assert Counter(due.tenant for due in first) == {"ann": 8, "ben": 1}
    hanging = {due.lane: 1 for due in first if due.tenant == "ann"}
    assert len(hanging) == 8
    for _ in range(3):
        [job] = ended(field, tenant="ben")
        [due] = take(outbox, 24, hanging)
        assert due.member == f"job:{job}"
        outbox.note(due, "delivered", status=200)
    field.later(90_000)  # all lanes are to be swept, and ann's first calls to be made again
    [job] = ended(field, tenant="ben")
    assert f"job:{job}" in {due.member for due in take(outbox, 24, hanging)}
    take_sha = sha("webhook_take").encode()
    assert [entry for entry in field.jobs.client.slowlog_get() if take_sha in entry["command"]] == []


def test_tenants_and_lanes_have_turns(field: Field, outbox: Outbox) -> None:
    """Who was called waits for the others: with one call at a time, tenants alternate, and so do the lanes of one."""
    for host in ("a", "b"):
        ended(field, 3, url=f"https://{host}.example/", tenant="ann")
    ended(field, 3, tenant="ben")
    lanes = []
    for _ in range(6):
        [due] = take(outbox, 1)
        lanes.append(due.lane)
        field.later(2)
    assert len({lane for lane in lanes if lane.startswith("ann:")}) == 2
    assert [lane.partition(":")[0] for lane in lanes] in (["ann", "ben"] * 3, ["ben", "ann"] * 3)


def test_lanes_of_an_earlier_version_are_found(field: Field, outbox: Outbox) -> None:
    """What only `webhooks` lists, as it was before tenants had turns, is taken at once; and `webhooks` has every lane
    within a minute for a version that takes from there, so that an update can be taken back."""
    made = [ended(field, tenant=tenant)[0] for tenant in ("ann", "ben")]
    lanes = field.client.zrange(keys.WEBHOOKS, 0, -1)
    field.client.delete(keys.HOOK_TENANTS, keys.hook_lanes("ann"), keys.hook_lanes("ben"))
    field.client.zadd(keys.WEBHOOKS, dict.fromkeys(lanes, 0))
    found = take(outbox)
    assert {due.member for due in found} == {f"job:{job}" for job in made}
    for due in found:
        outbox.note(due, "retry", status=503)
    field.later(4_000)
    assert take(outbox) == []
    now_ms = 1000 * field.client.time()[0]
    assert all(score < now_ms + 70_000 for _, score in field.client.zrange(keys.WEBHOOKS, 0, -1, withscores=True))


def test_a_webhook_of_what_is_gone_is_dropped(field: Field, outbox: Outbox) -> None:
    """A job that was trimmed, or goes on after all, is not called about, and leaves nothing behind."""
    trimmed, revived = ended(field, 2)
    field.client.hdel(keys.job(revived), "finished")
    field.client.delete(keys.job(trimmed))
    assert take(outbox) == []
    assert not list(field.client.scan_iter(f"{keys.PREFIX}hooks:*"))
    assert not field.client.exists(keys.WEBHOOKS)
    for key in (keys.FINISHED, keys.PREFIX + "finished_bytes", keys.jobs("default"), keys.job(revived)):
        field.client.delete(key)
    field.client.flushall()


def test_a_job_that_ends_twice_is_told_of_twice(field: Field, outbox: Outbox) -> None:
    """Another end of the same job is another message, with tries of its own; the calls stay on the list."""
    [job] = ended(field)
    [first] = take(outbox)
    outbox.note(first, "delivered", status=204)
    field.client.hset(keys.job(job), "state", "queued")
    field.jobs.cancel([job])
    [second] = take(outbox)
    assert second.message_id != first.message_id
    outbox.note(second, "retry", status=500)
    view = hook(field, job)
    assert (view.state, view.tries, [call.status for call in view.calls]) == ("pending", 1, [204, 500])
    field.client.flushall()


def test_no_two_ends_share_a_message_id() -> None:
    """Whatever senders call their jobs: receivers leave out what they have seen."""
    members = ("job:5", "job:job_5", "job:batch_5", "batch:batch_5")
    ids = [Due(member, "ann", "", 1, 0, "", "").message_id for member in members]
    assert ids == ["job_5_1", "job_job_5_1", "job_batch_5_1", "batch_5_1"]


def test_a_short_retention_ends_the_calls(field: Field) -> None:
    """A job is called about only as long as it is there: beyond its retention no try is planned."""
    short = with_values(field.jobs.settings, limits={"retention_s": 61.0})
    field.jobs.settings = short
    outbox = Outbox(field.jobs)
    [job] = ended(field)
    [due] = take(outbox)
    assert outbox.note(due, "retry", status=500) == "failed"
    assert hook(field, job).state == "failed"
