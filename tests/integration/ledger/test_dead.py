"""Dead jobs, by hand: queued again once, or deleted; and nothing else is touched."""

from __future__ import annotations

from typing import Any

import pytest

from farm import keys
from farm.contracts import JobState
from farm.errors import InvalidRequest, QuotaExceeded
from farm.ledger import dead
from farm.ledger.attempts import Refusal
from farm.ledger.dead import Answer, dead_ids, purge, retry
from farm.ledger.jobs import Jobs
from farm.ledger.usage import read_usage
from tests.integration.ledger.farmhand import MODEL, Field, failed, succeeded


def die(field: Field, *, tokens: int = 0, **more: Any) -> str:
    """A job that is dead: by strikes, or with tokens by ten losses."""
    [job] = field.submit(**more)
    kill(field, job, tokens=tokens)
    return job


def kill(field: Field, job: str, *, tokens: int = 0) -> None:
    hand = field.worker("slaughterhouse", 1)
    while field.state(job) != "dead":
        field.run(hand, job)
        if tokens:
            hand.write(job, 1)
            tokens -= 1
        hand.release("lost", "engine_lost", [job])


def ttls(field: Field, job: str) -> list[int]:
    return [field.client.ttl(key) for key in (keys.job(job), keys.out(job), keys.history(job))]


def test_a_retried_job_goes_on_from_its_tokens(field: Field) -> None:
    """It is queued with no strikes, resumed with what it has, and its history says that a person did it."""
    job = die(field, tokens=4)
    assert retry(field.jobs, [job]) == [Answer(job, True, None)]
    view = field.view(job)
    assert (view.state, view.strikes, view.losses, view.error, view.finished_at) == (JobState.QUEUED, 0, 0, None, None)
    assert view.token_ids == [0, 1, 2, 3]
    assert (view.history[-1].reason, view.history[-1].worker) == ("retried_by_hand", "")
    assert ttls(field, job) == [-1, -1, -1], "a job that may run must not expire"
    assert field.client.zcard(keys.DEAD) == field.client.zcard(keys.kept("default")) == 0
    hand = field.worker()
    assert len(field.run(hand, job).entries) == 4
    hand.finish(job, 2)
    view = field.view(job)
    assert (view.state, view.token_ids, view.usage.resumed_tokens) == (JobState.SUCCEEDED, list(range(6)), 4)
    assert view.history[-1].tokens == 2
    assert all(ttl > 0 for ttl in ttls(field, job))


def test_a_fresh_retry_starts_over(field: Field) -> None:
    """Its tokens are gone, and so is their weight; its history stays."""
    job = die(field, tokens=4)
    weighed = int(field.client.hget(keys.job(job), "bytes") or 0)
    retry(field.jobs, [job], fresh=True)
    view = field.view(job)
    assert (view.text, view.usage.resumed_tokens, view.timings.ttft_s) == ("", 0, None)
    assert view.history[-1].reason == "restarted_by_hand"
    assert len(view.history) > 4
    assert int(field.client.hget(keys.job(job), "bytes") or 0) < weighed
    hand = field.worker()
    assert field.run(hand, job).entries == []
    assert hand.finish(job, 3) is None
    assert field.view(job).token_ids == [0, 1, 2]


def test_a_job_may_die_and_be_retried_again(field: Field) -> None:
    """Each retry gives it as many chances as it had at first."""
    job = die(field)
    for _ in range(2):
        retry(field.jobs, [job])
        hand = field.worker()
        for state in (JobState.QUEUED, JobState.QUEUED, JobState.DEAD):
            field.run(hand, job)
            assert hand.release("lost", "engine_lost") == [state]
    assert [record.reason for record in field.view(job).history].count("retried_by_hand") == 2
    assert field.client.hmget(keys.TOTALS, "submitted", "dead", "revived") == ["1", "3", "2"]


def test_a_deadline_starts_anew(field: Field) -> None:
    """A job that had a minute has a minute again from each retry on, however long it was dead."""
    job = die(field, deadline_s=60)
    for _ in range(2):
        field.later(300_000)
        field.keep()
        retry(field.jobs, [job])
        field.later(50_000)
        field.keep()
        assert field.state(job) == "queued"
        kill(field, job)
    retry(field.jobs, [job])
    field.later(61_000)
    field.keep()
    assert field.state(job) == "expired"


def test_a_worker_from_before_the_death_can_write_nothing(field: Field) -> None:
    """Whoever had the job before it died is not its owner after a retry, whatever it still has to say."""
    job = die(field)
    retry(field.jobs, [job])
    hand = field.worker("barn")
    run = field.run(hand, job)
    for _ in range(3):
        hand.release("lost", "engine_lost", [job])
        if field.state(job) != "dead":
            run = field.run(hand, job)
    retry(field.jobs, [job])
    run.generate(5)
    assert hand.attempts.finish(run.advance(), succeeded()) is JobState.QUEUED
    assert hand.attempts.progress([run.advance()], 2)[1][0].word == "lost"
    assert field.view(job).token_ids == []


def test_a_retried_job_is_on_probation(field: Field) -> None:
    """Until it gives a token it is a suspect: alone of its kind on a worker, and alone to blame."""
    poison, other = die(field), die(field)
    retry(field.jobs, [poison, other])
    innocents = field.submit(3)
    hand = field.worker(capacity=8)
    for job in (poison, *innocents):
        field.run(hand, job)
    field.dispatch()
    assert hand.claim(field.mail[other]) == Refusal("suspect")
    hand.release("lost", "engine_lost")
    assert [field.view(job).strikes for job in (poison, *innocents)] == [1, 0, 0, 0]
    field.run(hand, other)
    hand.write(other, 1)
    assert field.client.hget(keys.job(other), "probation") is None


def test_a_tenant_pays_once_for_what_it_got(field: Field) -> None:
    """Each life of a job is charged and accounted for its prompt and the tokens that it gave, not for kept ones."""
    vtime = f"{keys.PREFIX}vtime:{MODEL}"
    job = die(field, tokens=4, tenant="ann", max_tokens=50)
    retry(field.jobs, [job])
    paid = float(field.client.hget(vtime, "ann") or 0)
    hand = field.worker()
    field.run(hand, job)
    assert float(field.client.hget(vtime, "ann") or 0) == paid + 52
    hand.finish(job, 6)
    assert float(field.client.hget(vtime, "ann") or 0) == paid + 3 + 6
    [day] = [day for day in read_usage(field.jobs, "ann", days=1) if day.completion_tokens]
    assert (day.dead, day.succeeded, day.prompt_tokens, day.completion_tokens) == (1, 1, 6, 10)


def test_a_fresh_retry_is_paid_in_full(field: Field) -> None:
    """Tokens that were dropped are paid for like any that were generated."""
    job = die(field, tokens=4, tenant="ann")
    retry(field.jobs, [job], fresh=True)
    hand = field.worker()
    field.run(hand, job)
    hand.finish(job, 6)
    [day] = [day for day in read_usage(field.jobs, "ann", days=1) if day.completion_tokens]
    assert day.completion_tokens == 10


def test_a_retry_is_let_in_whatever_waits(field: Field) -> None:
    """A tenant whose queue is full may have its dead job retried: it was let in before."""
    limits = field.jobs.settings.limits.model_copy(update={"queued_jobs": 1})
    job = die(field)
    field.submit()
    field.jobs = Jobs(field.jobs.settings.model_copy(update={"limits": limits}), field.client)
    with pytest.raises(QuotaExceeded):
        field.submit()
    assert retry(field.jobs, [job]) == [Answer(job, True, None)]


def test_a_retried_job_keeps_its_place(field: Field) -> None:
    """It goes before what its tenant submitted after it."""
    job = die(field)
    later = field.submit(2)
    retry(field.jobs, [job])
    field.worker(capacity=4)
    assert [message.id for message in field.dispatch()] == [job, *later]


def test_only_dead_jobs_are_retried_or_purged(field: Field) -> None:
    """What is in any other state, or unknown, stays as it is, and its state is told."""
    hand = field.worker(capacity=4)
    queued, running, done, broken, cancelled = field.submit(5)
    for job in (running, done, broken, cancelled):
        field.run(hand, job)
    hand.attempts.finish(hand.runs[done].advance(), succeeded())
    hand.attempts.finish(hand.runs[broken].advance(), failed())
    field.jobs.cancel([cancelled])
    [late] = field.submit(deadline_s=1)
    field.later(1_500)
    field.keep()
    wanted = {
        queued: "dispatched" if field.state(queued) == "dispatched" else "queued",
        running: "running",
        done: "succeeded",
        broken: "failed",
        cancelled: "cancelled",
        late: "expired",
    }
    before = field.dump(but=("events", "beat", "wake"))
    expected = [Answer(job, False, JobState(state)) for job, state in wanted.items()]
    for answers in (retry(field.jobs, [*wanted, "nobody"]), purge(field.jobs, [*wanted, "nobody"])):
        assert answers == [*expected, Answer("nobody", False, None)]
    assert field.dump(but=("events", "beat", "wake")) == before


def test_a_retried_plain_job_is_delivered_when_it_ends(field: Field) -> None:
    """The failure of a plain Celery job is not delivered any more once it runs again; its new end is."""
    job = die(field, plain="{}")
    assert field.client.zcard(keys.UNDELIVERED) == 1
    retry(field.jobs, [job])
    assert field.client.zcard(keys.UNDELIVERED) == 0
    hand = field.worker()
    field.run(hand, job)
    hand.finish(job, 1)
    assert field.client.zrange(keys.UNDELIVERED, 0, -1) == [job]


def test_a_job_submitted_again_under_its_key_is_the_dead_one(field: Field) -> None:
    """A key stands for its job, dead or alive; after a purge it is free."""
    job = die(field, idempotency_key="order-7")
    again = field.place(idempotency_key="order-7")
    assert (again.id, field.jobs.submit([again])) == (job, [False])
    assert purge(field.jobs, [job]) == [Answer(job, True, None)]
    assert field.jobs.submit([again]) == [True]
    assert field.state(job) == "queued"


def test_dead_jobs_are_listed_by_their_death(field: Field) -> None:
    """The latest first, of one tenant or model, of a certain age, and no more than asked for."""
    jobs = []
    for tenant in ("ann", "ben", "ann"):
        jobs.append(die(field, tenant=tenant))
        field.later(60_000)
    first, second, third = jobs
    assert dead_ids(field.jobs) == [third, second, first]
    assert dead_ids(field.jobs, limit=2) == [third, second]
    assert dead_ids(field.jobs, tenant="ann") == [third, first]
    assert dead_ids(field.jobs, tenant="ann", limit=1) == [third]
    assert dead_ids(field.jobs, model="another") == []
    assert dead_ids(field.jobs, model=f"somewhere/{MODEL}", older_s=90) == [second, first]
    with pytest.raises(InvalidRequest, match="limit: 0"):
        dead_ids(field.jobs, limit=0)
    assert dead.dead_count(field.jobs) == 3


def test_a_purge_leaves_nothing_and_spares_the_young(field: Field) -> None:
    """A purged job is gone with all that was known of it; one that died again meanwhile is not old any more."""
    old = die(field, tokens=2)
    field.later(60_000)
    young = die(field)
    assert purge(field.jobs, [old, young], older_s=30) == [
        Answer(old, True, None),
        Answer(young, False, JobState.DEAD),
    ]
    assert not any(old in key for key in field.client.scan_iter("*"))
    assert field.client.zrange(keys.jobs("default"), 0, -1) == [young]
    assert [member.partition("|")[0] for member in field.client.zrange(keys.kept("default"), 0, -1)] == [young]


def test_many_dead_jobs_are_found_and_retried_by_pages(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, each is found and queued once, a few a call."""
    monkeypatch.setattr(dead, "PAGE", 50)
    jobs = field.submit(120)
    hand = field.worker(capacity=120)
    for message in field.dispatch():
        hand.claim(message)
        field.client.hset(keys.job(message.id), "strikes", 2)
        hand.release("lost", "engine_lost", [message.id])
    assert sorted(dead_ids(field.jobs)) == sorted(jobs)
    assert all(answer.is_done for answer in retry(field.jobs, dead_ids(field.jobs)))
    assert dead_ids(field.jobs) == []
    assert field.client.hget(keys.counts(MODEL), "queued") == "120"
