"""``farm batch``: a file of prompts, on a real server."""

from __future__ import annotations

import fcntl
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from farm import Farm
from farm.batch import run_batch
from farm.batch_file import Answers, OutputUnusable
from farm.batch_report import BatchReport
from farm.ledger.jobs import Jobs
from farm.local.server import EmbeddedServer
from farm.settings import Settings, load_settings
from tests.conftest import wait_until
from tests.farmhand import Farmhand, quick, text_of


@pytest.fixture
def farm(settings: Settings, jobs: Jobs) -> Iterator[Farm]:
    """A client of the emptied server."""
    with Farm(quick(settings)) as client:
        yield client


@pytest.fixture
def hand(farm: Farm) -> Iterator[Farmhand]:
    with Farmhand(farm.settings) as worker:
        yield worker


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "in.jsonl"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def write(path: Path, *lines: object) -> None:
    """Write lines: text and bytes as they are, all else as JSON."""
    with path.open("wb") as file:
        for line in lines:
            raw = (
                line
                if isinstance(line, bytes)
                else line.encode()
                if isinstance(line, str)
                else json.dumps(line).encode()
            )
            file.write(raw + b"\n")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def by_id(path: Path) -> dict[str, dict[str, Any]]:
    return {record["custom_id"]: record for record in read(path)}


def short(number: int, tokens: int = 3) -> dict[str, object]:
    return {"custom_id": f"c{number}", "prompt": f"p{number}", "max_tokens": tokens}


def test_openai_lines_get_openai_answers(farm: Farm, hand: Farmhand, source: Path, target: Path) -> None:
    """A line as OpenAI's Batch API reads it gets an answer as that API writes it."""
    body = {"model": "tiny-bloom", "prompt": "hello", "max_tokens": 4, "user": "u", "n": 1, "return_token_ids": True}
    write(source, {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body})
    report = run_batch(farm, source, target)
    [record] = read(target)
    assert set(record) == {"id", "custom_id", "response", "error"}
    assert (record["custom_id"], record["error"]) == ("a", None)
    assert record["response"]["status_code"] == 200
    completion = record["response"]["body"]
    assert completion["object"] == "text_completion"
    assert completion["model"] == "tiny-bloom"
    assert completion["choices"] == [
        {
            "index": 0,
            "text": text_of("hello", 4),
            "finish_reason": "length",
            "logprobs": None,
            "token_ids": [0, 1, 2, 3],
        }
    ]
    assert completion["usage"] == {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5, "resumed_tokens": 0}
    assert (report.total, report.succeeded, report.failed, report.completion_tokens) == (1, 1, 0, 4)
    assert farm.job(record["response"]["request_id"]).result(timeout=0).text == text_of("hello", 4)


def test_a_bad_line_gets_an_error_and_stops_nothing(farm: Farm, hand: Farmhand, source: Path, target: Path) -> None:
    """Each broken line has an answer that says what is wrong and where; the others are completed."""
    chat = {"custom_id": "chat", "url": "/v1/chat/completions", "body": {"messages": []}}
    write(
        source,
        short(1),
        '{"custom_id": "torn", "prompt": ',
        b"\xff\xfe",
        "[1, 2]",
        "",
        {"custom_id": "hot", "prompt": "x", "temperature": -1},
        {"custom_id": "typo", "prompt": "x", "max_token": 3},
        {"custom_id": "two", "body": {"prompt": "x", "n": 2}},
        chat,
        {"custom_id": 7, "prompt": "x"},
        {"custom_id": "other", "prompt": "x", "model": "gpt-5"},
        {"custom_id": "long", "prompt": "x", "max_tokens": 100_000},
        "[" * 100_000,
        short(2),
    )
    report = run_batch(farm, source, target)
    records = by_id(target)
    assert (report.total, report.read, report.succeeded, report.failed) == (13, 13, 2, 11)
    assert records["c1"]["response"] is not None
    assert records["c2"]["response"] is not None
    expected = {
        "hot": ("invalid_request", 6, "temperature"),
        "typo": ("invalid_request", 7, "max_token"),
        "two": ("invalid_request", 8, "n"),
        "chat": ("invalid_request", 9, "url"),
        "other": ("invalid_request", 11, "model"),
        "long": ("prompt_too_long", 12, "max_tokens"),
    }
    for custom_id, (code, line, param) in expected.items():
        error = records[custom_id]["error"]
        assert (error["code"], error["line"], error["param"]) == (code, line, param)
        assert error["message"].startswith(f"line {line}: ")
    unnamed = {
        error["line"]: error for r in read(target) if (error := r["error"]) and r["custom_id"].startswith("line-")
    }
    assert set(unnamed) == {2, 3, 4, 10, 13}
    assert "is not JSON" in unnamed[2]["message"]


def test_a_failed_job_is_an_error_line(farm: Farm, source: Path, target: Path) -> None:
    """A job that fails leaves its reason and its id in its line."""
    write(source, short(1), short(2))
    with Farmhand(farm.settings, fail_prompts=frozenset({"p1"})):
        report = run_batch(farm, source, target)
    records = by_id(target)
    assert (report.succeeded, report.failed) == (1, 1)
    assert records["c1"]["error"]["code"] == "job_failed"
    assert "the model said no" in records["c1"]["error"]["message"]
    assert farm.job(records["c1"]["error"]["job_id"]).status().state == "failed"


def test_a_finished_batch_has_nothing_left_to_do(farm: Farm, hand: Farmhand, source: Path, target: Path) -> None:
    """Running a batch again changes nothing: all its lines have their answers, errors and repetitions included."""
    write(source, short(1), short(1), "nonsense", {"prompt": "no id"}, short(2), short(1))
    first = run_batch(farm, source, target)
    before = target.read_bytes()
    again = run_batch(farm, source, target)
    assert (first.succeeded, first.failed, first.skipped) == (3, 3, 0)
    assert (again.succeeded, again.failed, again.skipped) == (0, 0, 6)
    assert target.read_bytes() == before


def test_a_repeated_custom_id_is_refused(farm: Farm, hand: Farmhand, source: Path, target: Path) -> None:
    """The first line with an id is answered, later ones are refused."""
    write(source, short(1), {"custom_id": "c1", "prompt": "another"})
    run_batch(farm, source, target)
    answers = read(target)
    assert sorted(str((r["error"] or {}).get("code")) for r in answers) == ["None", "duplicate_custom_id"]
    [completion] = [r for r in answers if r["response"]]
    assert completion["response"]["body"]["choices"][0]["text"] == text_of("p1", 3)


def test_a_refused_repetition_does_not_pass_for_the_answer(
    farm: Farm, hand: Farmhand, source: Path, target: Path
) -> None:
    """After a crash between a repetition's error and the first line's answer, the first line is still answered."""
    write(source, short(1), short(1))
    run_batch(farm, source, target)
    [error] = [r for r in read(target) if r["error"]]
    write(target, error)
    report = run_batch(farm, source, target)
    assert (report.succeeded, report.failed, report.skipped) == (1, 0, 1)


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


def test_a_line_whose_answer_is_never_kept_is_given_up(farm: Farm, source: Path, target: Path) -> None:
    """A server that forgets each job before its answer is read costs a few tries, not a batch without end."""
    write(source, short(1))

    def see(report: BatchReport) -> None:
        if report.in_flight:
            farm.ledger.client.flushall()

    soon = farm.settings.client.model_copy(update={"reread_s": 0.1})
    with Farm(farm.settings.model_copy(update={"client": soon})) as watchful:
        report = run_batch(watchful, source, target, on_progress=see)
    assert report.failed == 1
    [record] = read(target)
    assert (record["error"]["code"], record["error"]["retryable"]) == ("job_not_found", True)


def test_a_file_that_was_replaced_is_not_written_any_more(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens the output just before another batch replaces it writes to the new file, not to the lost one."""
    write(target, {"id": "batch_req_1", "custom_id": "old", "response": None})
    lock = fcntl.flock

    def replaced(file: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        write(target.with_name("new"), {"id": "batch_req_2", "custom_id": "new", "response": None})
        target.with_name("new").replace(target)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", replaced)
    with Answers(target) as answers:
        answers.write({"id": "batch_req_3", "custom_id": "more", "response": None})
    assert list(by_id(target)) == ["new", "more"]


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


def test_a_file_of_something_else_is_left_alone(farm: Farm, source: Path, target: Path) -> None:
    """A batch does not append to, or cut, a file that holds no answers; nor to its own input."""
    write(source, short(1))
    for content in (b"precious\n", b"precious", b'{"a": 1}\n', b'[]\n{"id":"batch_req_'):
        target.write_bytes(content)
        with pytest.raises(OutputUnusable, match=r"choose another"):
            run_batch(farm, source, target)
        assert target.read_bytes() == content
    with pytest.raises(OutputUnusable, match=r"is the input"):
        run_batch(farm, source, source)


def test_one_batch_at_a_time_writes_a_file(farm: Farm, source: Path, target: Path) -> None:
    """A second batch on the same output is refused."""
    write(source, short(1))
    with target.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OutputUnusable, match=r"another batch"):
            run_batch(farm, source, target)


def test_the_window_bounds_jobs_in_flight(farm: Farm, hand: Farmhand, source: Path, target: Path) -> None:
    """However long the input, no more jobs than the window are in flight."""
    write(source, *(short(number) for number in range(200)))
    seen: list[int] = []
    run_batch(farm, source, target, window=16, on_progress=lambda report: seen.append(report.in_flight))
    assert 0 < max(seen) <= 16
    assert hand.most_seen <= 16
    assert len(read(target)) == 200


def test_standard_input_and_defaults(farm: Farm, hand: Farmhand, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines may come from standard input, a last one without its newline too; defaults fill what they leave out."""
    monkeypatch.setattr(
        sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'\xef\xbb\xbf{"prompt": "a"}\n\n{"prompt": "b"}'))
    )
    report = run_batch(farm, "-", target, defaults={"max_tokens": 2})
    assert (report.total, report.read, report.succeeded) == (None, 2, 2)
    texts = {r["response"]["body"]["choices"][0]["text"] for r in read(target)}
    assert texts == {text_of("a", 2), text_of("b", 2)}
    assert {r["custom_id"].rpartition("-")[0] for r in read(target)} == {"line-1", "line-3"}


def test_a_batch_rides_out_a_restart_of_the_server(source: Path, target: Path, tmp_path: Path) -> None:
    """A server that is killed and started again while a batch runs costs no line, and the wait is mentioned."""
    server = EmbeddedServer(tmp_path / "server", appendfsync="always")
    server.start()
    try:
        settings = quick(load_settings(redis={"url": server.url, "timeout_s": 0.5}))
        write(source, *(short(number, tokens=50) for number in range(300)))
        notices: list[str] = []
        reports: list[BatchReport] = []

        with Farm(settings) as farm, Farmhand(settings, capacity=8, tokens_per_beat=25):
            run = threading.Thread(
                target=run_batch,
                args=(farm, source, target),
                kwargs={"window": 32, "on_progress": reports.append, "on_notice": notices.append},
            )
            run.start()
            wait_until(lambda: reports and reports[-1].succeeded >= 20, why="some answers")
            server.kill()
            before = len(reports)
            wait_until(lambda: notices or len(reports) == before, why="the batch to notice")
            server.start()
            run.join(timeout=60)
            assert not run.is_alive()
    finally:
        server.stop()
    assert reports[-1].succeeded == 300
    assert {r["custom_id"]: r["response"]["body"]["choices"][0]["text"] for r in read(target)} == {
        f"c{number}": text_of(f"p{number}", 50) for number in range(300)
    }


def test_ids_of_many_answers_take_no_memory_of_their_own(target: Path) -> None:
    """Answers are known by digests in a file, in whatever order and number they stand."""
    lines = [
        json.dumps({"id": f"batch_req_{n}", "custom_id": f'c,"response":{n}', "response": None}, separators=(",", ":"))
        for n in range(5_000)
    ]
    write(target, *lines)
    with Answers(target) as answers:
        assert all(answers.stand(f'c,"response":{n}').value == "answered" for n in range(5_000))
        assert answers.stand("new").value == "new"
