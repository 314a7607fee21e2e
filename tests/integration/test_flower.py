"""Flower beside real workers: what it shows, what it keeps to itself, what it refuses, what it remembers."""

from __future__ import annotations

import json
import pickle
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from farm import keys
from farm.ledger.jobs import Jobs
from tests.browser import chromium
from tests.commands import farm
from tests.conftest import wait_until
from tests.flower import FlowerProcess
from tests.integration.conftest import StartWorker, submit, wait_for_all

SECRET = "zanzibar clandestine"
StartFlower = Callable[..., FlowerProcess]


@pytest.fixture
def start_flower(jobs: Jobs, tmp_path: Path) -> Iterator[StartFlower]:
    """Start Flowers; all are killed at the end."""
    started: list[FlowerProcess] = []
    url = jobs.settings.redis.url
    assert url is not None

    def start(**settings: object) -> FlowerProcess:
        flower = FlowerProcess(url.get_secret_value(), tmp_path, **settings)  # type: ignore[arg-type]
        started.append(flower)
        return flower

    yield start
    for flower in started:
        flower.kill()


def test_a_job_in_its_columns(jobs: Jobs, start_worker: StartWorker, start_flower: StartFlower) -> None:
    """Flower shows a job under its own id with state, model, priority, tokens, time queued, run time and worker."""
    flower = start_flower()
    start_worker("w1")
    ids = [submit(jobs, 1, max_tokens=tokens, priority="high")[0] for tokens in (9, 100, 20)]
    wait_for_all(jobs, ids)
    wait_until(lambda: len(flower.rows("state:SUCCESS")) == 3, why="Flower to hear of all")
    row = next(row for row in flower.rows() if row["uuid"] == ids[0])
    shown = {name: row[name] for name in ("state", "model", "priority", "tokens")}
    assert shown == {"state": "SUCCESS", "model": "tiny-bloom", "priority": "high", "tokens": 9}
    assert row["worker"].startswith("w1@")
    assert row["runtime"] > 0
    assert 0 <= row["queued_s"] < 30
    assert [row["tokens"] for row in flower.rows(sort_by="tokens")] == [100, 20, 9]
    assert flower.tasks()[ids[0]]["tokens"] == 9


def test_nothing_private_is_anywhere(
    jobs: Jobs, start_worker: StartWorker, start_flower: StartFlower, foreign_app: Celery
) -> None:
    """No page, no answer of its API, no search, log or file of Flower's holds a word of a prompt or a completion.

    Neither of our jobs nor of foreign tasks: announced by their sender, running, succeeded, failed, retried, of others.
    """
    foreign_app.conf.task_send_sent_event = True
    flower = start_flower(FLOWER__SAVE_S=1)
    worker = start_worker("w1", ENGINE__SYNTHETIC_STEP_S=0.005)
    good, bad = {"prompt": SECRET, "max_tokens": 40}, {"prompt": SECRET, "max_tokens": 0}
    done = foreign_app.send_task("farm.generate", kwargs=good)
    failed = foreign_app.send_task("farm.generate", args=[SECRET], kwargs={"max_tokens": 0})
    waiting = foreign_app.send_task("farm.generate", kwargs=good, queue="farm.nobody")
    other = foreign_app.send_task("other.task", args=[SECRET], kwargs=bad, queue="farm.default")
    text = done.get(timeout=30)["text"]
    [ours] = submit(jobs, 1, max_tokens=300, metadata={"note": SECRET})
    wait_until(lambda: jobs.client.llen(keys.out(ours)), why="a token")
    assert flower.ask(f"/worker/w1@{socket.gethostname()}")[0] == 200
    worker.engine.kill()
    wait_for_all(jobs, [ours])
    ids = {done.id, failed.id, waiting.id, other.id, ours}
    wait_until(lambda: ids <= flower.tasks().keys(), why="Flower to hear of all")
    wait_until(lambda: flower.tasks()[ours]["state"] == "SUCCESS", why="Flower to hear of the end")
    wait_until(lambda: flower.tasks()[failed.id]["state"] == "FAILURE", why="Flower to hear of the failure")
    assert flower.tasks()[failed.id]["exception"] == "GenerationFailed(invalid_request)"

    pages = ["/", "/workers?json=1", "/tasks", "/broker", "/metrics", "/api/tasks", "/api/task/types"]
    pages += ["/api/workers?refresh=1", "/api/queues/length", f"/worker/w1@{socket.gethostname()}"]
    pages += [f"{place}/{id_}" for place in ("/task", "/api/task/info") for id_ in sorted(ids)]
    told = [flower.ask(page) for page in pages]
    assert {status for status, _ in told} == {200}
    told += [flower.ask(f"/api/task/result/{id_}") for id_ in sorted(ids)]
    assert {status for status, _ in told[len(pages) :]} == {403}
    assert len(flower.rows("farm.generate")) >= 4
    words = [*SECRET.split(), text.strip()[:20]]
    assert [flower.rows(word.split()[0]) for word in words] == [[], [], []]
    flower.stop()
    everything = json.dumps(told) + flower.log + flower.db.read_bytes().decode("latin-1")
    assert [word for word in words if word in everything] == []


def test_what_is_no_event_costs_no_event(start_flower: StartFlower, foreign_app: Celery) -> None:
    """Whatever strangers send to where events go, events right after it are heard, and no word of it is logged."""
    flower = start_flower()
    exchange = foreign_app.events.Dispatcher(enabled=False).exchange
    nonsense = [
        {},
        7,
        [],
        [7, {"type": 7}],
        {"type": "task-received", "clock": "x"},
        {"type": 7, "args": SECRET},
        {"type": "task-sent"},
        "type",
        None,
    ]
    told = []
    with foreign_app.connection() as connection, connection.Producer() as producer:

        def publish(body: object, kind: str = "task.multi", **how: Any) -> None:
            producer.publish(body, exchange=exchange, declare=[exchange], routing_key=kind, **how)

        def event(name: str) -> dict[str, object]:
            about = {"uuid": name, "name": "other.task", "hostname": "w9@there", "timestamp": time.time()}
            return {"type": "task-received", **about, "utcoffset": 0, "pid": 1, "clock": 100}

        def is_listening() -> bool:
            publish([event("before")])
            return "before" in flower.tasks()

        wait_until(is_listening, why="Flower to listen")
        publish(SECRET.encode(), content_type="application/x-python-serialize", content_encoding="binary")
        for number, wrong in enumerate(nonsense):
            publish(wrong)
            told.append(f"after-{number}")
            publish([wrong, event(told[-1])])
        wait_until(lambda: told[-1] in flower.tasks(), why="the last of them to be heard")
    assert set(told) <= flower.tasks().keys()
    assert SECRET not in flower.log


@pytest.mark.parametrize(
    "given", [{"FLOWER__READ_ONLY": "true"}, {"login": None}], ids=["read-only", "without a password"]
)
def test_read_only(jobs: Jobs, start_worker: StartWorker, start_flower: StartFlower, given: dict[str, object]) -> None:
    """A read-only Flower, and one without a password, changes nothing: it says so, and its pages offer nothing."""
    flower = start_flower(**given)
    start_worker("w1", ENGINE__SYNTHETIC_STEP_S=0.01)
    [job] = submit(jobs, 1, max_tokens=2_000)
    wait_until(lambda: any(row["state"] == "STARTED" for row in flower.rows()), why="the job to run")
    name = f"w1@{socket.gethostname()}"
    wanted = ["shutdown", "pool/restart", "pool/grow", "pool/shrink", "pool/autoscale", "queue/add-consumer"]
    paths = [f"/api/worker/{deed}/{name}" for deed in [*wanted, "queue/cancel-consumer"]]
    paths += [f"/api/task/{deed}/farm.generate" for deed in ("async-apply", "send-task", "apply", "rate-limit")]
    paths += [f"/api/task/{deed}/{job}" for deed in ("revoke", "abort")]
    answers = [flower.ask(path, "POST", workername=name, terminate="true", n=1, queue="x") for path in paths]
    assert {status for status, _ in answers} == {401 if "login" in given else 403}
    assert all(body for _, body in answers)
    assert "Terminate" not in flower.ask(f"/task/{job}")[1]
    assert jobs.view(job).state == "running"
    jobs.cancel([job])


def test_a_revoked_task_is_a_cancelled_job(jobs: Jobs, start_worker: StartWorker, start_flower: StartFlower) -> None:
    """With a password, Terminate on a task's page cancels its job."""
    flower = start_flower()
    start_worker("w1", ENGINE__SYNTHETIC_STEP_S=0.01)
    [job] = submit(jobs, 1, max_tokens=2_000)
    wait_until(lambda: any(row["state"] == "STARTED" for row in flower.rows()), why="the job to run")
    assert "Terminate" in flower.ask(f"/task/{job}")[1]
    assert flower.ask(f"/api/task/revoke/{job}", "POST", terminate="true")[0] == 200
    [view] = wait_for_all(jobs, [job])
    assert view.state == "cancelled"


def test_it_remembers(jobs: Jobs, start_worker: StartWorker, start_flower: StartFlower) -> None:
    """A Flower that starts again shows what the last one saw; a broken file is set aside, and said to be."""
    first = start_flower()
    start_worker("w1")
    [job] = submit(jobs, 1, max_tokens=3)
    wait_until(lambda: [row["state"] for row in first.rows()] == ["SUCCESS"], why="Flower to hear of it")
    assert first.stop() == 0
    second = start_flower()
    assert [(row["uuid"], row["tokens"]) for row in second.rows()] == [(job, 3)]
    second.kill()
    whole = first.db.read_bytes()
    for broken in (whole[:-5], b"", pickle.dumps("something else")):
        first.db.write_bytes(broken)
        third = start_flower()
        assert third.rows() == []
        third.kill()
        assert first.db.with_name("flower.db.broken").read_bytes() == broken
    assert first.log.count("starting afresh") == 3


def test_what_is_wrong_is_one_line(jobs: Jobs, tmp_path: Path) -> None:
    """A port that is taken, or a place where it can keep nothing, ends ``farm flower`` with 2 and a line that helps."""
    url = jobs.settings.redis.url
    assert url is not None
    settings = {"REDIS__URL": url.get_secret_value(), "LOCAL__STATE_DIR": tmp_path}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = farm("flower", "--port", taken.getsockname()[1], **settings)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "--port or FARM_FLOWER__PORT" in said.err
    (tmp_path / "file").touch()
    said = farm("flower", "--port", 0, FLOWER__DB=tmp_path / "file" / "flower.db", **settings)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "FARM_FLOWER__DB" in said.err


def test_the_columns_fit_a_page(
    jobs: Jobs, start_worker: StartWorker, start_flower: StartFlower, tmp_path: Path
) -> None:
    """In a window of 1,280 pixels the page of tasks shows every column without scrolling, and no script fails."""
    flower = start_flower(login=None)
    start_worker("w1")
    [job] = submit(jobs, 1, max_tokens=3)
    wait_until(lambda: [row["state"] for row in flower.rows()] == ["SUCCESS"], why="Flower to hear of it")
    with chromium(tmp_path) as browser:
        size = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(f"http://127.0.0.1:{flower.port}/tasks")
        cells = "return [...document.querySelectorAll('#tasks-table tbody td')].map(cell => cell.innerText)"
        wait_until(lambda: job in "".join(browser.execute_script(cells)), why="the row")
        body = "document.querySelector('.dataTables_scrollBody')"
        assert browser.execute_script(f"return {body}.scrollWidth - {body}.clientWidth") <= 0
        row = browser.execute_script(cells)
        assert row[1:5] == ["SUCCESS", "tiny-bloom", "normal", "3"]
        assert [entry["message"] for entry in browser.get_log("browser")] == []
