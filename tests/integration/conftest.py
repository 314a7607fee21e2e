"""Fixtures for tests with real workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery import Celery

from farm import Farm
from farm.contracts import parse_request
from farm.ledger.jobs import Jobs
from farm.results import JobView
from farm.settings import Settings
from tests.conftest import wait_until
from tests.farmhand import Farmhand, quick
from tests.workers import WorkerProcess

StartWorker = Callable[..., WorkerProcess]


@pytest.fixture
def start_worker(jobs: Jobs, tmp_path: Path) -> Iterator[StartWorker]:
    """Start workers by name; all are killed at the end."""
    started: list[WorkerProcess] = []

    def start(name: str = "w1", **settings: object) -> WorkerProcess:
        worker = WorkerProcess(jobs, tmp_path, name, **settings)  # type: ignore[arg-type]
        started.append(worker)
        return worker.wait_ready()

    yield start
    for worker in started:
        worker.kill()


@pytest.fixture
def farm(settings: Settings, jobs: Jobs) -> Iterator[Farm]:
    """A client of the emptied server."""
    with Farm(quick(settings)) as client:
        yield client


@pytest.fixture
def hand(farm: Farm) -> Iterator[Farmhand]:
    """A worker that answers at once."""
    with Farmhand(farm.settings) as worker:
        yield worker


@pytest.fixture
def foreign_app(jobs: Jobs) -> Iterator[Celery]:
    """A Celery app that knows nothing of the farm but where its server is."""
    url = jobs.settings.redis.url
    assert url is not None
    app = Celery("unrelated", broker=url.get_secret_value(), backend=url.get_secret_value(), set_as_current=False)
    yield app
    app.close()


def submit(jobs: Jobs, count: int = 1, **values: object) -> list[str]:
    """Submit prompts that differ; returns their ids."""
    placed = [jobs.place(parse_request({"prompt": f"prompt number {i}", **values})) for i in range(count)]
    jobs.submit(placed)
    return [submission.id for submission in placed]


def wait_for_all(jobs: Jobs, ids: list[str], timeout_s: float = 60.0) -> list[JobView]:
    """The jobs once all have ended."""

    def views() -> list[JobView]:
        return [view for view in jobs.views(ids) if view is not None]

    wait_until(lambda: all(view.state.is_terminal for view in views()), why="all jobs to end", timeout_s=timeout_s)
    return views()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Where a batch is read from."""
    return tmp_path / "in.jsonl"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where its answers are written to."""
    return tmp_path / "out.jsonl"
