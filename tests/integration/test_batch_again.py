"""``farm batch`` once more: what an earlier run did stays done, and what may be tried again is."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from farm import Farm
from farm.batch import run_batch
from farm.batch_report import BatchReport
from tests.conftest import wait_until
from tests.farmhand import Farmhand, text_of
from tests.integration.batch_lines import by_id, read, short, write


def test_a_finished_batch_has_nothing_left_to_do(farm: Farm, hand: Farmhand, source: Path, target: Path) -> None:
    """Running a batch again changes nothing: all its lines have their answers, errors and repetitions included."""
    write(source, short(1), short(1), "nonsense", {"prompt": "no id"}, short(2), short(1))
    first = run_batch(farm, source, target)
    before = target.read_bytes()
    again = run_batch(farm, source, target)
    assert (first.succeeded, first.failed, first.skipped) == (3, 3, 0)
    assert (again.succeeded, again.failed, again.skipped) == (0, 0, 6)
    assert target.read_bytes() == before


def test_an_interrupted_batch_goes_on(farm: Farm, source: Path, target: Path) -> None:
    """After an interrupt no answered line is asked again, and jobs in flight are taken up, not generated twice."""
    write(source, *(short(number) for number in range(30)))

    def interrupt(report: BatchReport) -> None:
        if report.succeeded >= 5:
            raise KeyboardInterrupt

    with Farmhand(farm.settings, capacity=5) as worker:
        with pytest.raises(KeyboardInterrupt):
            run_batch(farm, source, target, window=10, on_progress=interrupt)
        answered = len(read(target))
        report = run_batch(farm, source, target, window=10)
        assert report.skipped == answered >= 5
        assert report.succeeded == 30 - answered
        assert len(worker.claims) == 30
    assert {r["custom_id"]: r["response"]["body"]["choices"][0]["text"] for r in read(target)} == {
        f"c{number}": text_of(f"p{number}", 3) for number in range(30)
    }


def test_tokens_of_an_earlier_run_are_not_counted_as_new(farm: Farm, source: Path, target: Path) -> None:
    """What was generated before a run, in jobs that it takes up again, is in the answers and not in its pace."""
    write(source, short(1, tokens=4))

    def interrupt(report: BatchReport) -> None:
        if report.in_flight:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_batch(farm, source, target, on_progress=interrupt)
    with Farmhand(farm.settings):
        wait_until(lambda: next(farm.jobs()).state.is_terminal, why="the job to end while no batch runs")
        write(source, short(1, tokens=4), short(2, tokens=3))
        report = run_batch(farm, source, target)
    assert (report.succeeded, report.completion_tokens, report.new_tokens) == (2, 7, 3)


def test_a_job_that_was_cancelled_meanwhile_is_asked_again(farm: Farm, source: Path, target: Path) -> None:
    """Jobs of an interrupted run that were cancelled are generated when the batch is run again."""
    write(source, short(1))

    def interrupt(report: BatchReport) -> None:
        if report.in_flight:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_batch(farm, source, target, on_progress=interrupt)
        queued = [key.rpartition(":")[2] for key in farm.ledger.client.scan_iter("{farm}:job:*")]
        farm.ledger.cancel(queued)
    with Farmhand(farm.settings):
        assert run_batch(farm, source, target).succeeded == 1


def cancel_when_running(farm: Farm, job_prompt: str) -> Callable[[BatchReport], None]:
    """Cancels the job with a prompt as soon as it is there."""

    def see(_: BatchReport) -> None:
        for key in farm.ledger.client.scan_iter("{farm}:job:*"):
            if f'"prompt":"{job_prompt}"' in str(farm.ledger.client.hget(key, "request")):
                farm.ledger.cancel([key.rpartition(":")[2]])

    return see


def test_errors_stay_unless_they_are_to_be_retried(farm: Farm, source: Path, target: Path, tmp_path: Path) -> None:
    """A line that was cancelled, expired or dead is asked again with retry_errors; one at fault itself never is."""
    write(source, short(1), short(2, tokens=2_000), {"custom_id": "bad", "prompt": "bad"}, "nonsense", short(1))
    real = tmp_path / "real.jsonl"
    real.touch(0o600)
    target.symlink_to(real)
    with Farmhand(farm.settings, fail_prompts=frozenset({"bad"}), tokens_per_beat=1) as hand:
        first = run_batch(farm, source, target, on_progress=cancel_when_running(farm, "p2"))
        assert (first.succeeded, first.failed) == (1, 4)
        records = read(target)
        retryable = {record["custom_id"] for record in records if record["error"] and record["error"]["retryable"]}
        assert retryable == {"c2"}
        again = run_batch(farm, source, target)
        assert (again.skipped, again.retried) == (5, 0)
        assert read(target) == records
        hand.tokens_per_beat = 1_000
        retried = run_batch(farm, source, target, retry_errors=True)
    assert (retried.retried, retried.succeeded, retried.failed, retried.skipped) == (1, 1, 0, 4)
    assert [record for record in read(target) if record["custom_id"] != "c2"] == [
        record for record in records if record["custom_id"] != "c2"
    ]
    assert by_id(target)["c2"]["response"]["body"]["usage"]["completion_tokens"] == 2_000
    assert target.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o600
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_errors_taken_out_are_asked_again_even_after_a_crash(farm: Farm, source: Path, target: Path) -> None:
    """Once its error is out of the file a line has no answer, and any further run asks it."""
    write(source, short(1, tokens=2_000))
    with Farmhand(farm.settings, tokens_per_beat=1):
        run_batch(farm, source, target, on_progress=cancel_when_running(farm, "p1"))

    def interrupt(_: BatchReport) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_batch(farm, source, target, retry_errors=True, on_progress=interrupt)
    assert read(target) == []
    with Farmhand(farm.settings):
        assert run_batch(farm, source, target).succeeded == 1


def test_a_dead_line_takes_up_its_job_that_was_retried_by_hand(farm: Farm, source: Path, target: Path) -> None:
    """A batch that asks a dead line again finds the job that somebody has queued again meanwhile."""
    fragile = farm.settings.keeper.model_copy(update={"max_losses": 1, "max_strikes": 1})
    settings = farm.settings.model_copy(update={"keeper": fragile})
    write(source, short(1, tokens=100))
    doomed = Farmhand(settings, "doomed", tokens_per_beat=1, die_at=3).start()
    with ThreadPoolExecutor() as pool:
        batch = pool.submit(run_batch, farm, source, target)
        wait_until(lambda: not doomed.is_alive, why="the worker to die")
        with Farmhand(settings, "heir"):
            assert batch.result(timeout=30).failed == 1
            [view] = farm.dead()
            farm.job(view.id).retry()
            assert run_batch(farm, source, target, retry_errors=True).succeeded == 1
    doomed.die()
    [record] = read(target)
    assert record["response"]["request_id"] == view.id
    assert record["response"]["body"]["usage"]["resumed_tokens"] >= 3


def test_a_torn_line_is_cut_off_and_asked_again(farm: Farm, hand: Farmhand, source: Path, target: Path) -> None:
    """A line that a crash has left half written is redone, wherever it is torn."""
    write(source, short(1), short(2))
    run_batch(farm, source, target)
    whole = target.read_bytes()
    first, second = whole.splitlines(keepends=True)
    for length in (1, 5, 40, len(second) // 2, len(second) - 2):
        target.write_bytes(first + second[:length])
        report = run_batch(farm, source, target)
        assert (report.skipped, report.succeeded) == (1, 1)
        assert len(read(target)) == 2
    target.write_bytes(whole[:-1])
    assert run_batch(farm, source, target).skipped == 2
    assert target.read_bytes() == whole
