"""The farm as a plain Celery task: any Celery app can call it, and nothing private shows on the way."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator

import pytest
from celery import Celery, chord, group
from celery.exceptions import TaskRevokedError
from kombu import Connection

from farm import keys
from farm.contracts import JobState, Request
from farm.ledger.jobs import Jobs
from farm.ledger.tenants import Tenants
from tests.conftest import wait_until
from tests.integration.conftest import StartWorker, submit, wait_for_all

SECRET = "zanzibar clandestine"


@contextlib.contextmanager
def _events(app: Celery) -> Iterator[list[dict[str, object]]]:
    """Collect every Celery event."""
    seen: list[dict[str, object]] = []
    stop = threading.Event()
    ready = threading.Event()

    def read() -> None:
        with app.connection() as outer:
            receiver = app.events.Receiver(outer, handlers={"*": seen.append})
            with receiver.consumer_context() as (connection, _channel, _consumers):
                ready.set()
                while not stop.is_set():
                    with contextlib.suppress(TimeoutError):
                        connection.drain_events(timeout=0.1)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def test_send_task_returns_the_completion(jobs: Jobs, start_worker: StartWorker, foreign_app: Celery) -> None:
    """send_task from an unrelated app returns text, token ids, finish reason and usage, under the task's own id."""
    start_worker()
    result = foreign_app.send_task("farm.generate", kwargs={"prompt": SECRET, "max_tokens": 8})
    body = result.get(timeout=30)
    assert body["id"] == result.id
    assert len(body["token_ids"]) == 8
    assert body["finish_reason"] == "length"
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 8, "total_tokens": 10, "resumed_tokens": 0}
    assert jobs.view(result.id).text == body["text"]
    wait_until(lambda: not jobs.client.zcard(keys.UNDELIVERED), why="the result to be known as stored")


@pytest.mark.parametrize("queue", ["farm.default", "farm.tiny-bloom"])
def test_send_task_by_queue(start_worker: StartWorker, foreign_app: Celery, queue: str) -> None:
    """A foreign message may name the farm's default queue or a model's."""
    start_worker()
    result = foreign_app.send_task("farm.generate", args=["by position"], kwargs={"max_tokens": 2}, queue=queue)
    assert result.get(timeout=30)["finish_reason"] == "length"


def test_canvas(start_worker: StartWorker, foreign_app: Celery) -> None:
    """Groups collect in order, a chord's body gets all results, links fire: callbacks travel with the job."""
    start_worker()

    def generate(prompt: str, tokens: int) -> object:
        return foreign_app.signature("farm.generate", kwargs={"prompt": prompt, "max_tokens": tokens})

    bodies = group(generate(f"g{i}", i + 1) for i in range(4)).apply_async().get(timeout=30)
    assert [body["usage"]["completion_tokens"] for body in bodies] == [1, 2, 3, 4]

    # The body gets a list of completions as its prompt, which is refused: the chord has run it.
    whole = chord([generate("a", 1), generate("b", 2)], app=foreign_app)(foreign_app.signature("farm.generate"))
    with pytest.raises(Exception, match="prompt: must be text"):
        whole.get(timeout=30)


def test_bad_foreign_request_fails_at_once(start_worker: StartWorker, foreign_app: Celery) -> None:
    """A foreign request that breaks a rule fails with the field, the value and the limit."""
    start_worker()
    for kwargs, message in (
        ({"prompt": "x", "max_tokens": 0}, "max_tokens: 0 is out of range"),
        ({"prompt": "x", "max_token": 1}, "did you mean 'max_tokens'"),
        ({"prompt": "x", "model": "gpt-2"}, "'gpt-2' is not served here"),
        ({}, "prompt: is missing"),
    ):
        with pytest.raises(Exception, match=message):
            foreign_app.send_task("farm.generate", kwargs=kwargs).get(timeout=30)


@pytest.mark.parametrize("queue", ["farm.default", "farm.tiny-bloom"])
def test_foreign_messages_without_room_hold_up_no_job(
    jobs: Jobs, start_worker: StartWorker, foreign_app: Celery, queue: str
) -> None:
    """While the ledger has no room for them, its jobs go on as if they were not there; then they are answered, with
    their links, also those that were sent to a model's own queue."""
    Tenants(jobs).change("default", limits={"queued_jobs": 30})
    blockers = submit(jobs, 30, model="nobody/serves-this")
    start_worker("w1", ENGINE__MAX_SLOTS=2)
    with _events(foreign_app) as seen:
        values = {"kwargs": {"max_tokens": 2}, "queue": queue}
        foreign = [foreign_app.send_task("farm.generate", args=[f"p{n}"], **values) for n in range(20)]
        link = foreign_app.signature("farm.generate", kwargs={"max_tokens": 0}, task_id="linked")
        foreign.append(foreign_app.send_task("farm.generate", args=["p"], link=link, **values))
        wait_until(lambda: any(event["type"] == "task-rejected" for event in seen), why="one of them to be refused")
        began = time.monotonic()
        for number in range(10):
            placed = jobs.place(Request(prompt=f"mine {number}", max_tokens=2), tenant="ann")
            jobs.submit([placed])
            wait_for_all(jobs, [placed.id])
        assert time.monotonic() - began < 8.0
    jobs.cancel(blockers)
    assert [result.get(timeout=30)["usage"]["completion_tokens"] for result in foreign] == [2] * 21
    with pytest.raises(Exception, match="prompt"):
        foreign_app.AsyncResult("linked").get(timeout=30)


def test_nothing_private_in_events_or_logs(jobs: Jobs, start_worker: StartWorker, foreign_app: Celery) -> None:
    """Prompt and completion of a foreign message stand in no event, no log line and no inspection answer."""
    worker = start_worker("w1", ENGINE__SYNTHETIC_STEP_S=0.01)
    with _events(foreign_app) as seen:
        result = foreign_app.send_task("farm.generate", kwargs={"prompt": SECRET, "max_tokens": 100})
        wait_until(lambda: worker.held() == 1, why="the job to run")
        active = foreign_app.control.inspect(timeout=2).active()
        text = result.get(timeout=30)["text"]
        wait_until(
            lambda: any(event["type"] == "task-succeeded" and event["uuid"] == result.id for event in seen),
            why="the success event",
        )
    assert result.id in json.dumps(active)
    told = json.dumps([active, seen], default=str) + worker.log
    assert {"task-received", "task-started", "task-succeeded"} <= {str(event["type"]) for event in seen}
    for word in SECRET.split():
        assert word not in told
    assert text.strip()[:30] not in told


def test_jobs_show_in_celery_under_their_own_ids(jobs: Jobs, start_worker: StartWorker, foreign_app: Celery) -> None:
    """The Celery task of a job has the job's id."""
    start_worker()
    with _events(foreign_app) as seen:
        [job_id] = submit(jobs, 1, max_tokens=2)
        wait_until(
            lambda: any(event["type"] == "task-succeeded" and event["uuid"] == job_id for event in seen),
            why="the success event under the job's id",
        )


def test_duplicate_delivery_returns_the_stored_outcome(
    jobs: Jobs, start_worker: StartWorker, foreign_app: Celery
) -> None:
    """A message that comes again after its job has ended gets the stored completion; nothing is computed twice."""
    start_worker()
    job_id = "order-7"
    kwargs = {"prompt": "once only", "max_tokens": 5}
    first = foreign_app.send_task("farm.generate", kwargs=kwargs, task_id=job_id).get(timeout=30)
    foreign_app.AsyncResult(job_id).forget()
    again = foreign_app.send_task("farm.generate", kwargs=kwargs, task_id=job_id).get(timeout=30)
    assert again == first
    assert jobs.view(job_id).attempt == 1


def test_lost_result_is_delivered_again(jobs: Jobs, start_worker: StartWorker, foreign_app: Celery) -> None:
    """A plain job that ended away from a worker (here: cancelled while queued) still tells its caller."""
    start_worker("w1", ENGINE__MAX_SLOTS=1, KEEPER__MARGIN=0, ENGINE__SYNTHETIC_STEP_S=0.01)
    [busy] = submit(jobs, 1, max_tokens=1500)
    result = foreign_app.send_task("farm.generate", kwargs={"prompt": "waits"})
    wait_until(lambda: jobs.views([result.id])[0] is not None, why="the foreign request to be adopted")
    jobs.cancel([result.id])
    jobs.cancel([busy])
    with pytest.raises(TaskRevokedError):
        result.get(timeout=30)


@pytest.mark.parametrize("terminate", [False, True])
def test_revoke_cancels_a_running_job(
    jobs: Jobs, start_worker: StartWorker, foreign_app: Celery, terminate: bool
) -> None:
    """Celery's revoke, as Flower sends it, cancels the job, running or not."""
    worker = start_worker("w1", ENGINE__SYNTHETIC_STEP_S=0.01)
    result = foreign_app.send_task("farm.generate", kwargs={"prompt": "endless", "max_tokens": 2000})
    wait_until(lambda: worker.held() == 1, why="the job to run")
    foreign_app.control.revoke(result.id, terminate=terminate)
    [view] = wait_for_all(jobs, [result.id])
    assert view.state is JobState.CANCELLED
    with pytest.raises(TaskRevokedError):
        result.get(timeout=30)
    [after] = wait_for_all(jobs, submit(jobs, 1, max_tokens=2))
    assert after.state is JobState.SUCCEEDED


def test_only_json_is_read(jobs: Jobs, start_worker: StartWorker, foreign_app: Celery) -> None:
    """A pickled message is refused unread, and the worker goes on."""
    worker = start_worker()
    with Connection(foreign_app.conf.broker_url) as connection, connection.SimpleQueue("farm.default") as queue:
        queue.put({"prompt": "x"}, serializer="pickle")
    [view] = wait_for_all(jobs, submit(jobs, 1, max_tokens=2))
    assert view.state is JobState.SUCCEEDED
    wait_until(lambda: "untrusted content" in worker.log or "ContentDisallowed" in worker.log, why="the refusal")


def test_a_job_that_is_tried_again_shows_as_retried(jobs: Jobs, start_worker: StartWorker, foreign_app: Celery) -> None:
    """A job that loses its engine shows in Celery's events as retried, then as succeeded."""
    worker = start_worker("w1", ENGINE__SYNTHETIC_STEP_S=0.01)
    with _events(foreign_app) as seen:
        [job_id] = submit(jobs, 1, max_tokens=300)
        wait_until(lambda: jobs.client.llen(keys.out(job_id)), why="a token")
        worker.engine.kill()
        wait_for_all(jobs, [job_id])
        told = {"task-retried", "task-succeeded"}
        wait_until(lambda: told <= {event["type"] for event in seen if event.get("uuid") == job_id}, why="both events")


def test_malformed_messages_do_not_end_the_worker(jobs: Jobs, start_worker: StartWorker, foreign_app: Celery) -> None:
    """Whatever a foreign message holds, the worker goes on; and what it can't use it does not quote."""
    worker = start_worker()
    bodies = [[1, 2, "x"], [["p"], "x", {}], [[SECRET], {"prompt": SECRET}, {}], "text", {"prompt": SECRET}, None]
    with foreign_app.connection() as connection, connection.SimpleQueue("farm.default") as queue:
        for task in ("farm.generate", "farm.generat"):
            for number, body in enumerate(bodies):
                queue.put(body, serializer="json", headers={"task": task, "id": f"{task}-{number}", "lang": "py"})
        queue.put(
            [[], {"prompt": SECRET}, {}], serializer="json", headers={"task": "farm.generate", "id": "e", "eta": "?"}
        )
        queue.put([[], {"job": SECRET, "dispatch": SECRET}, {}], headers={"task": "farm.generate", "id": "d"})
        queue.put({"prompt": SECRET}, serializer="json")
    [view] = wait_for_all(jobs, submit(jobs, 1, max_tokens=2))
    assert view.state is JobState.SUCCEEDED
    wait_until(lambda: jobs.client.llen("farm.default") == 0, why="all messages to be taken")
    wait_until(lambda: "withheld" in worker.log, why="a refusal in the log")
    assert worker.process.poll() is None
    for word in SECRET.split():
        assert word not in worker.log


def test_a_result_nobody_wants_is_not_kept(jobs: Jobs, start_worker: StartWorker, foreign_app: Celery) -> None:
    """With ignore_result the job is done, and Celery's backend holds nothing of it."""
    start_worker()
    result = foreign_app.send_task("farm.generate", kwargs={"prompt": "quiet", "max_tokens": 2}, ignore_result=True)
    wait_until(lambda: jobs.views([result.id])[0] is not None, why="the job to be adopted")
    wait_for_all(jobs, [result.id])
    [after] = wait_for_all(jobs, submit(jobs, 1, max_tokens=2))
    assert after.state is JobState.SUCCEEDED
    assert not jobs.client.exists(f"celery-task-meta-{result.id}")


def test_an_id_used_for_another_request_is_refused(start_worker: StartWorker, foreign_app: Celery) -> None:
    """A task id names one request: another one under it, or an id that is no name, fails with the reason."""
    start_worker()
    foreign_app.send_task("farm.generate", kwargs={"prompt": "a", "max_tokens": 1}, task_id="one").get(timeout=30)
    foreign_app.AsyncResult("one").forget()
    with pytest.raises(Exception, match="exists with another request"):
        foreign_app.send_task("farm.generate", kwargs={"prompt": "b"}, task_id="one").get(timeout=30)
    with pytest.raises(Exception, match="is no job id"):
        foreign_app.send_task("farm.generate", kwargs={"prompt": "b"}, task_id="odd id").get(timeout=30)


def test_a_foreign_message_waits_for_room(jobs: Jobs, start_worker: StartWorker, foreign_app: Celery) -> None:
    """While its tenant has as much queued as it may, a foreign message stays one; what never fits fails at once."""
    Tenants(jobs).change("default", limits={"queued_jobs": 1, "queued_tokens": 1000})
    start_worker()
    with pytest.raises(Exception, match="exceeds_quota: queued_tokens: 2,002 tokens at once > 1,000"):
        foreign_app.send_task("farm.generate", kwargs={"prompt": "hello", "max_tokens": 2000}).get(timeout=30)
    [blocker] = submit(jobs, model="nobody/serves-this")
    with _events(foreign_app) as seen:
        waits = foreign_app.send_task("farm.generate", kwargs={"prompt": "hello", "max_tokens": 4})
        wait_until(lambda: any(event["type"] == "task-rejected" for event in seen), why="the message to be refused")
    assert jobs.views([waits.id]) == [None]
    jobs.cancel([blocker])
    assert waits.get(timeout=30)["usage"]["completion_tokens"] == 4
