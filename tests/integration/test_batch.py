"""``farm batch``: a file of prompts, on a real server."""

from __future__ import annotations

import fcntl
import io
import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from farm import Farm
from farm.batch import run_batch
from farm.batch_file import Answers, OutputUnusable
from farm.batch_report import BatchReport
from farm.errors import InvalidRequest
from farm.local.server import EmbeddedServer
from farm.settings import load_settings
from tests.conftest import wait_until
from tests.farmhand import Farmhand, quick, text_of
from tests.integration.batch_lines import by_id, read, short, write


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


def test_a_file_of_something_else_is_left_alone(farm: Farm, source: Path, target: Path) -> None:
    """A batch does not append to, or cut, a file that holds no answers; nor to its own input."""
    write(source, short(1))
    for content in (b"precious\n", b"precious", b'{"a": 1}\n', b'[]\n{"id":"batch_req_'):
        target.write_bytes(content)
        with pytest.raises(OutputUnusable, match=r"choose another"):
            run_batch(farm, source, target)
        assert target.read_bytes() == content
    with pytest.raises(InvalidRequest, match=r"is the input"):
        run_batch(farm, source, source)


@pytest.mark.parametrize("device", ["/dev/null", "/dev/full"])
def test_an_output_that_is_no_file_is_refused(device: str) -> None:
    """What can't be read again, or has no end, is not read in search of answers."""
    with pytest.raises(OutputUnusable, match=r"no ordinary file"):
        Answers(Path(device))


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
