"""Webhooks over HTTP: signed, repeated until they arrive, and never sent where the farm must not call."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest

from farm import keys
from farm.contracts import JobState, parse_request
from farm.ledger.jobs import Jobs
from farm.ledger.webhooks import WebhookSecrets
from farm.local.environ import with_values
from farm.results import WebhookView
from tests.commands import farm
from tests.conftest import wait_until
from tests.farmhand import Farmhand, quick, text_of
from tests.integration.conftest import StartWorker
from tests.receiver import Receiver, Silent
from workers.system.webhooks import WebhookSender

LOOPBACK = ["127.0.0.0/8"]
QUICK = {"allow": LOOPBACK, "timeout_s": 2.0, "retry_base_s": 0.05, "retry_cap_s": 0.1, "concurrency": 16}


@contextmanager
def sending(jobs: Jobs, **changes: object) -> Iterator[WebhookSender]:
    """A sender at work, with quick retries."""
    own = Jobs(with_values(jobs.settings, webhooks={**QUICK, **changes}))
    sender = WebhookSender(own)
    sender.start()
    try:
        yield sender
    finally:
        sender.stop()
        own.client.close()


def ended(jobs: Jobs, url: str, count: int = 1, tenant: str = "ann") -> list[str]:
    """Jobs with a webhook that have ended."""
    placed = [
        jobs.place(parse_request({"prompt": f"secret {n}", "webhook_url": url}), tenant=tenant) for n in range(count)
    ]
    jobs.submit(placed)
    jobs.cancel([submission.id for submission in placed])
    return [submission.id for submission in placed]


def hook(jobs: Jobs, job_id: str) -> WebhookView:
    webhook = jobs.view(job_id).webhook
    assert webhook is not None
    return webhook


def wait_for(jobs: Jobs, job_id: str, state: str) -> WebhookView:
    wait_until(lambda: hook(jobs, job_id).state == state, why=f"the webhook to be {state}")
    return hook(jobs, job_id)


def test_an_end_is_told_once_and_signed(jobs: Jobs) -> None:
    """The body is the job as it can be read, under a signature that receivers' own library accepts, and nobody else's
    secret fits. Of two senders one calls."""
    with Receiver() as receiver, sending(jobs), sending(jobs):
        [job] = ended(jobs, receiver.url)
        view = wait_for(jobs, job, "delivered")
        [got] = receiver.got
    event = got.verify(WebhookSecrets(jobs).of("ann")[0])
    with pytest.raises(Exception, match="No matching signature"):
        got.verify(WebhookSecrets(jobs).of("ben")[0])
    shown = {name: value for name, value in jobs.view(job).to_dict().items() if name != "webhook"}
    assert (event["type"], event["data"]) == ("job.cancelled", shown)
    assert got.path == "/hook?of=farm"
    assert got.headers["webhook-id"] == f"job_{job}_1"
    assert got.headers["content-type"] == "application/json"
    assert "secret" not in got.body.decode()
    assert (view.tries, [(call.status, call.error) for call in view.calls]) == (1, [(204, None)])
    assert jobs.view(job).to_dict()["webhook"]["calls"][0]["status"] == 204


def test_a_changed_secret_signs_beside_the_old_one(jobs: Jobs) -> None:
    """For a day both fit, so that a receiver can change over."""
    secrets = WebhookSecrets(jobs)
    [old] = secrets.of("ann")
    new = secrets.rotate("ann")
    with Receiver() as receiver, sending(jobs):
        [job] = ended(jobs, receiver.url)
        wait_for(jobs, job, "delivered")
        [got] = receiver.got
    assert got.verify(old) == got.verify(new) == got.json


def test_what_fails_is_tried_again_under_the_same_id(jobs: Jobs) -> None:
    """Any answer but a 2xx is tried again, each try signed anew; the job tells of each."""
    with Receiver(500, 404, 302, 200) as receiver, sending(jobs):
        [job] = ended(jobs, receiver.url)
        view = wait_for(jobs, job, "delivered")
        assert [call.status for call in view.calls] == [500, 404, 302, 200]
        assert len({got.headers["webhook-id"] for got in receiver.got}) == 1
        assert len({got.body for got in receiver.got}) == 1
        for got in receiver.got:
            got.verify(WebhookSecrets(jobs).of("ann")[0])


def test_gone_is_taken_at_its_word(jobs: Jobs) -> None:
    """410 is the receiver's way to say: no more of this."""
    with Receiver(410) as receiver, sending(jobs):
        [job] = ended(jobs, receiver.url)
        view = wait_for(jobs, job, "failed")
        [other] = ended(jobs, receiver.url)
        wait_for(jobs, other, "failed")
        assert (len(receiver.got), [call.status for call in view.calls]) == (2, [410])


def test_what_never_arrives_has_failed_in_the_end(jobs: Jobs) -> None:
    """After ``give_up_s`` no more tries are made; the last ten calls say why."""
    with Receiver(503) as receiver, sending(jobs, give_up_s=1.0):
        [job] = ended(jobs, receiver.url)
        view = wait_for(jobs, job, "failed")
        assert 3 <= len(receiver.got) == view.tries
        assert {call.status for call in view.calls} == {503}


def test_a_redirect_is_not_followed(jobs: Jobs) -> None:
    """Where it leads was never checked."""

    def redirect(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(307)
        handler.send_header("location", inside.url)
        handler.end_headers()

    with Receiver() as inside, Receiver(answer=redirect) as receiver, sending(jobs):
        [job] = ended(jobs, receiver.url)
        wait_until(lambda: len(receiver.got) >= 2, why="a second try")
        assert inside.connections == 0
        assert hook(jobs, job).calls[0].status == 307


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"])
def test_a_closed_network_is_never_called(jobs: Jobs, host: str) -> None:
    """Without permission no connection is made to loopback, however it is named; the job says why."""
    with Receiver() as receiver, sending(jobs, allow=["10.0.0.0/8"]):
        [job] = ended(jobs, f"https://{host}:{receiver.port}/")
        wait_until(lambda: hook(jobs, job).calls, why="a first try")
        assert receiver.connections == 0
        [call] = hook(jobs, job).calls[:1]
        assert call.status is None
        assert call.error is not None
        assert "private or reserved" in call.error


def test_a_slow_receiver_delays_nobody_else(jobs: Jobs) -> None:
    """While all of one tenant's calls hang, another's are made, and so are the same tenant's to another receiver."""
    with Silent() as silent, Receiver() as receiver, sending(jobs, timeout_s=30.0):
        stuck = ended(jobs, silent.url, 50)
        wait_until(lambda: sum(hook(jobs, job).tries for job in stuck) == 2, why="calls to hang")
        others = ended(jobs, receiver.url, 20, tenant="ben") + ended(jobs, receiver.url, 20)
        wait_until(lambda: all(hook(jobs, job).state == "delivered" for job in others), why="the others' calls")
        assert sum(hook(jobs, job).tries for job in stuck) == 2
        assert {hook(jobs, job).state for job in stuck} == {"pending"}


def test_an_answer_that_drips_ends_in_time(jobs: Jobs) -> None:
    """A receiver that sends a header's byte now and then holds its call for ``timeout_s`` and no longer."""
    enough = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nx-drip: ")
        while not enough.wait(0.05):
            handler.wfile.write(b".")

    with Receiver(answer=drip) as receiver, sending(jobs, timeout_s=0.5):
        [job] = ended(jobs, receiver.url)
        wait_until(lambda: hook(jobs, job).calls, why="the end of the first call")
        [call] = hook(jobs, job).calls[:1]
        assert (call.status, call.error) == (None, "no answer in time")
        assert 0.4 <= call.duration_s <= 5
        enough.set()


def test_an_endless_answer_is_not_read(jobs: Jobs) -> None:
    """The status counts; the body is nobody's business, however much of it comes."""

    def gush(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100_000):
            handler.wfile.write(b"x" * 65_536)

    with Receiver(answer=gush) as receiver, sending(jobs):
        [job] = ended(jobs, receiver.url)
        assert wait_for(jobs, job, "delivered").calls[-1].duration_s < 2


@pytest.mark.parametrize(("answers", "status"), [(5, 204), (math.inf, None)])
def test_provisional_answers_are_borne_up_to_a_limit(jobs: Jobs, answers: float, status: int | None) -> None:
    """A receiver may say 100 Continue before its status. One that says nothing else is left at once, and does not keep
    the sender from the others."""

    def go_on(handler: BaseHTTPRequestHandler) -> None:
        said = 0
        while said < answers:
            said += handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n") > 0
        handler.send_response(204)
        handler.end_headers()

    with Receiver(answer=go_on) as receiver, sending(jobs, timeout_s=20.0, retry_base_s=60.0):
        [job] = ended(jobs, receiver.url)
        wait_until(lambda: hook(jobs, job).calls, why="the call to end")
        [call] = hook(jobs, job).calls
    assert (call.status, call.error) == (status, None if status else "the answer broke off or is no HTTP")


def test_a_job_that_succeeds_is_told_with_its_text(jobs: Jobs) -> None:
    """The result is in the body, as a read of the job would give it."""
    with Receiver() as receiver, sending(jobs), Farmhand(quick(jobs.settings)):
        placed = jobs.place(parse_request({"prompt": "A goat", "max_tokens": 3, "webhook_url": receiver.url}))
        jobs.submit([placed])
        wait_for(jobs, placed.id, "delivered")
        [got] = receiver.got
    assert jobs.view(placed.id).state is JobState.SUCCEEDED
    assert (got.json["type"], got.json["data"]["text"]) == ("job.succeeded", text_of("A goat", 3))


def test_only_system_workers_call_out(jobs: Jobs, start_worker: StartWorker) -> None:
    """A worker that generates never calls anybody; a webhook waits until there is a system worker."""
    told = {"WEBHOOKS__ALLOW": "127.0.0.0/8,::1/128", "LOCAL__STATE_DIR": jobs.settings.local.folder}
    url = jobs.settings.redis.url
    assert url is not None
    with Receiver() as receiver:
        start_worker("model", **told)
        asked = ("submit", "A goat", "--max-tokens", 2, "--tenant", "ann", "--webhook", receiver.url)
        assert farm(*asked, REDIS__URL=url.get_secret_value()).code == 0
        [key] = jobs.client.scan_iter(keys.job("*"))
        job = key.removeprefix(keys.job(""))
        assert (hook(jobs, job).state, hook(jobs, job).tries) == ("pending", 0)
        start_worker("system", WORKER__ROLE="system", **told)
        wait_for(jobs, job, "delivered")
        [got] = receiver.got
        assert got.verify(WebhookSecrets(jobs).of("ann")[0])["data"]["id"] == job
    shown = farm("status", job, REDIS__URL=url.get_secret_value()).out
    assert "delivered, 1 call, the last: 204" in shown
    assert receiver.url not in shown
