"""Batches whose drivers die: wherever that happens, every line is run once and answered once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from farm import keys
from farm.file_store import Store, Writer, open_store
from farm.ledger.batches import Batches
from farm.ledger.driving import Driving
from farm.ledger.files import Files
from farm.ledger.jobs import Jobs
from farm.ledger.streams import Reader
from farm.ledger.trash import Trash
from farm.local.environ import with_values
from farm.prompts import PromptCheck
from farm.settings import Settings
from tests.batching import TENANT, ended, line, read, start, submitted, wait_for
from tests.conftest import wait_until
from tests.farmhand import Farmhand, quick
from tests.integration.conftest import StartWorker
from workers.system.batch_run import BatchRun, Workshop
from workers.system.hold import Hold
from workers.system.janitor import Janitor


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return quick(settings)


class Crash(Exception):
    """The process dies here."""


class Fuse:
    """Counts what is done to server and store, and dies before or after the nth of it."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self.is_burnt = False

    def step(self) -> None:
        if self.is_burnt:
            raise Crash
        self.left -= 1
        if self.left == 0:
            self.is_burnt = True
            raise Crash


class FusedWriter:
    def __init__(self, writer: Writer, fuse: Fuse) -> None:
        self._writer = writer
        self._fuse = fuse

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    def commit(self) -> None:
        self._fuse.step()
        self._writer.commit()
        self._fuse.step()

    def __enter__(self) -> FusedWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._writer.__exit__(*exc)


class FusedStore:
    def __init__(self, store: Store, fuse: Fuse) -> None:
        self._store = store
        self._fuse = fuse
        self.reader = store.reader
        self.delete = store.delete

    def writer(self, path: str) -> FusedWriter:
        return FusedWriter(self._store.writer(path), self._fuse)


def drive_until_crash(jobs: Jobs, steps: int) -> bool:
    """Drive whatever batch is due; returns whether that ended in a crash."""
    fuse = Fuse(steps)
    fused = Jobs(jobs.settings)
    plain: Callable[..., Any] = fused.scripts.call

    def call(name: str, *args: Any, **more: Any) -> Any:
        fuse.step()
        answer = plain(name, *args, **more)
        fuse.step()
        return answer

    work = Driving(jobs, "sys")
    drive = work.take()
    assert drive is not None
    fused.scripts.call = call  # type: ignore[method-assign]
    reader = Reader(jobs)
    shop = Workshop(
        fused,
        reader,
        PromptCheck(fused),
        FusedStore(open_store(jobs.settings), fuse),
        Files(fused),
        Trash(fused),
        Driving(fused, "sys"),
    )
    try:
        BatchRun(shop, drive, Hold(drive, threading.Event(), lambda: False)).run()
    except Crash:
        return True
    finally:
        reader.close()
        fused.client.close()
        for held in jobs.client.zrange(keys.BATCHES_DUE, 0, -1):
            jobs.client.zadd(keys.BATCHES_DUE, {held: 0})  # its lease ends
    return False


@pytest.mark.parametrize("ending", ["completed", "cancelled"])
def test_a_crash_at_any_step_redoes_no_line(jobs: Jobs, settings: Settings, ending: str) -> None:
    """Wherever a driver dies, the next one goes on: each line is run once and stands in one file once, and the jobs are
    gone from the server at the end."""
    jobs.settings = with_values(settings, batches={"flush_s": 0.0, "window": 2})
    lines = [line(n) for n in range(4)]
    lines[2]["body"]["max_tokens"] = 0
    crashes = 0
    with Farmhand(jobs.settings):
        for steps in range(1, 200):
            before = submitted(jobs)
            batch = start(jobs, lines)
            if ending == "cancelled":
                Batches(jobs).cancel(batch.id, TENANT)
            has_crashed = drive_until_crash(jobs, steps)
            crashes += has_crashed
            if has_crashed and not ended(jobs, batch):
                assert not drive_until_crash(jobs, 1_000)
            batch = Batches(jobs).get(batch.id, TENANT)
            assert (batch.status, batch.total, batch.completed + batch.failed) == (ending, 4, 4)
            output, errors = read(jobs, batch.output_file_id), read(jobs, batch.error_file_id)
            assert sorted([*output, *errors]) == [f"line-{n}" for n in range(4)]
            assert (len(output), submitted(jobs) - before) == ((3, 3) if ending == "completed" else (0, 0))
            if not has_crashed:
                break
        else:
            pytest.fail("the batch never came to its end")
    assert crashes >= 12
    assert Janitor(jobs).clean() is False


def here(jobs: Jobs) -> dict[str, object]:
    """Where a worker finds the files of the test."""
    return {"LOCAL__STATE_DIR": jobs.settings.local.folder}


def test_results_that_are_gone_are_made_again(jobs: Jobs, settings: Settings) -> None:
    """When jobs' retention passed before anybody read them, their lines are run once more rather than lost."""
    jobs.settings = with_values(settings, batches={"flush_s": 0.0})
    batch = start(jobs, [line(n) for n in range(3)])
    with Farmhand(jobs.settings):
        steps = next(steps for steps in range(1, 99) if drive_until_crash(jobs, steps) and submitted(jobs) == 3)
        ids = [key.removeprefix(keys.job("")) for key in jobs.client.scan_iter(keys.job("*"))]
        wait_until(lambda: all(view and view.state.is_terminal for view in jobs.views(ids)), why="the jobs' ends")
        assert (steps > 0, jobs.forget(TENANT, ids), ended(jobs, batch)) == (True, 3, False)
        assert not drive_until_crash(jobs, 1_000)
    assert (wait_for(jobs, batch).completed, submitted(jobs)) == (3, 6)


def test_a_batch_survives_its_drivers(jobs: Jobs, start_worker: StartWorker) -> None:
    """System workers that are killed one after the other finish a batch together: every line is run once and answered
    once."""
    start_worker("model", LEASE__LEASE_S=2, ENGINE__SYNTHETIC_STEP_S=0.02, ENGINE__MAX_SLOTS=16)
    here = {"WORKER__ROLE": "system", "LOCAL__STATE_DIR": jobs.settings.local.folder}
    quick_ones = {**here, "BATCHES__FLUSH_S": 0.2, "LEASE__LEASE_S": 2}
    batch = start(jobs, [line(n, max_tokens=12) for n in range(300)])
    for name in ("sys-1", "sys-2", "sys-3"):
        before = Batches(jobs).get(batch.id, TENANT).completed
        worker = start_worker(name, **quick_ones)
        wait_until(lambda before=before: Batches(jobs).get(batch.id, TENANT).completed > before, why="progress")  # type: ignore[misc]
        if name != "sys-3":
            worker.kill()
            assert not ended(jobs, batch)
    batch = wait_for(jobs, batch, timeout_s=90)
    assert (batch.status, batch.completed, submitted(jobs)) == ("completed", 300, 300)
    assert set(read(jobs, batch.output_file_id)) == {f"line-{n}" for n in range(300)}
