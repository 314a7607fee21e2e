"""Batches, driven from their files to their files: every line is answered once, whatever happens meanwhile."""

from __future__ import annotations

import json

import pytest

from farm import keys
from farm.batch_contracts import COMPLETIONS, BatchRequest
from farm.file_store import StoreUnavailable, open_store
from farm.ledger.batches import Batch, Batches
from farm.ledger.jobs import Jobs
from farm.ledger.tenants import Tenants
from farm.local.environ import with_values
from farm.results import Usage
from farm.settings import Settings
from tests.batching import TENANT, driving, line, read, start, submitted, upload, wait_for
from tests.conftest import wait_until
from tests.farmhand import Farmhand, quick, text_of
from workers.system.tally import Tally


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return quick(settings)


def test_every_line_is_answered_once(jobs: Jobs) -> None:
    """Good lines stand in the output, bad ones in the error file, each under its custom_id; counts and tokens add up,
    and no job of it stays in the server."""
    lines = [line(n) for n in range(300)]
    lines[7]["body"]["max_tokens"] = 0
    lines[8]["body"]["wibble"] = 1
    lines[9]["url"] = "/v1/chat/completions"
    lines[10]["custom_id"] = "line-3"
    lines[11]["body"]["model"] = "gpt-5"
    lines[12]["body"]["webhook_url"] = "https://example.com/"
    with Farmhand(jobs.settings), driving(jobs, window=50):
        batch = wait_for(jobs, start(jobs, lines))
    output, errors = read(jobs, batch.output_file_id), read(jobs, batch.error_file_id)
    assert (batch.status, batch.total, batch.completed, batch.failed) == ("completed", 300, 294, 6)
    assert set(output) == {f"line-{n}" for n in range(300)} - {f"line-{n}" for n in range(7, 13)}
    assert (batch.completion_tokens, batch.model) == (588, "tiny-bloom")
    for number in (0, 3, 299):
        record = output[f"line-{number}"]
        assert record["error"] is None
        assert record["response"]["status_code"] == 200
        [choice] = record["response"]["body"]["choices"]
        assert choice["text"] == text_of(f"prompt {number}", 2)
    codes = {
        name: (record["response"]["status_code"], record["response"]["body"]["error"]["param"], record["error"])
        for name, record in errors.items()
    }
    assert codes == {
        "line-7": (400, "max_tokens", None),
        "line-8": (400, "wibble", None),
        "line-9": (400, "url", None),
        "line-3": (400, "custom_id", None),
        "line-11": (400, "model", None),
        "line-12": (400, "webhook_url", None),
    }
    assert errors["line-7"]["response"]["body"]["error"]["message"].startswith("line 8: max_tokens")
    assert not list(jobs.client.scan_iter(f"{keys.PREFIX}job:*"))
    assert jobs.client.zcard(keys.kept("default")) == 0


def test_odd_files_are_read(jobs: Jobs) -> None:
    """A byte order mark, blank lines, Windows' line ends, no end of the last line, lines in the short form."""
    content = b"\xef\xbb\xbf" + b"\r\n".join(
        [
            json.dumps(line(1)).encode(),
            b"",
            b"   ",
            b'{"prompt": "short", "max_tokens": 1, "custom_id": "s"}',
            b"not JSON",
            b"[1]",
            b'{"custom_id": "huge", "prompt": "' + b"x" * (1 << 20) + b'"}',
            json.dumps(line(2)).encode(),
        ]
    )
    with Farmhand(jobs.settings), driving(jobs):
        batch = wait_for(jobs, start(jobs, content))
    assert (batch.total, batch.completed, batch.failed) == (6, 3, 3)
    assert set(read(jobs, batch.output_file_id)) == {"line-1", "s", "line-2"}
    errors = [record["response"]["body"]["error"]["message"] for record in read(jobs, batch.error_file_id).values()]
    assert [message.split(":")[0] for message in errors] == ["line 5", "line 6", "line 7"]


@pytest.mark.parametrize(
    ("content", "code"), [(b"", "empty_file"), (b"\n \n", "empty_file"), (b'{"prompt":"x"}\n' * 11, "too_many_lines")]
)
def test_a_file_that_is_no_batch_fails_it(jobs: Jobs, content: bytes, code: str) -> None:
    """Without lines, or with too many, the batch fails before its first job."""
    with driving(jobs, max_lines=10):
        batch = wait_for(jobs, start(jobs, content))
    assert (batch.status, [error["code"] for error in batch.errors]) == ("failed", [code])
    assert (batch.output_file_id, batch.error_file_id, submitted(jobs)) == (None, None, 0)


def test_an_input_that_is_not_in_the_store_fails_the_batch(jobs: Jobs) -> None:
    """The API and the system workers must be told the same store; the error says so."""
    batch = start(jobs, [line(1)])
    elsewhere = Jobs(with_values(jobs.settings, local={"state_dir": jobs.settings.local.folder / "elsewhere"}))
    with driving(elsewhere):
        batch = wait_for(jobs, batch)
    elsewhere.client.close()
    assert batch.status == "failed"
    assert "FARM_FILES__URL" in batch.errors[0]["message"]


def test_few_jobs_are_in_the_server_at_once(jobs: Jobs) -> None:
    """A batch keeps at most its window of jobs there, and they go at low priority."""
    most = 0
    with Farmhand(jobs.settings, tokens_per_beat=1, capacity=8), driving(jobs, window=40):
        batch = start(jobs, [line(n, max_tokens=2) for n in range(150)])
        while Batches(jobs).get(batch.id, TENANT).finished_at is None:
            alive = list(jobs.client.scan_iter(f"{keys.PREFIX}job:*", count=10_000))
            states = [jobs.client.hget(key, "state") for key in alive]
            most = max(most, sum(state in ("queued", "dispatched", "running") for state in states))
            assert {jobs.client.hget(key, "priority") for key in alive} <= {"low", None}
    assert 0 < most <= 40
    assert wait_for(jobs, batch).completed == 150


def test_a_full_queue_is_waited_for(jobs: Jobs) -> None:
    """A tenant that may have three jobs queued has its batch run three by three, and a line that never fits fails."""
    Tenants(jobs).change(TENANT, limits={"queued_jobs": 3, "queued_tokens": 100})
    lines = [line(n) for n in range(20)]
    lines[5]["body"]["max_tokens"] = 101
    with Farmhand(jobs.settings), driving(jobs):
        batch = wait_for(jobs, start(jobs, lines))
    assert (batch.status, batch.completed, batch.failed) == ("completed", 19, 1)
    [error] = read(jobs, batch.error_file_id).values()
    assert error["response"]["body"]["error"]["code"] == "exceeds_quota"


def half_done(jobs: Jobs, hand: Farmhand, **request: object) -> Batch:
    """A batch of which some lines are answered and written, and the others are stuck."""
    batch = start(jobs, [line(n, max_tokens=2 if n < 10 else 2_000) for n in range(40)], **request)
    wait_until(lambda: Batches(jobs).get(batch.id, TENANT).completed == 10, why="a quarter of the batch")
    hand.tokens_per_beat = 0
    return batch


def test_a_window_that_closes_leaves_what_is_done(jobs: Jobs) -> None:
    """Lines that were answered in time are in the output, all others in the error file as expired."""
    with Farmhand(jobs.settings, tokens_per_beat=2) as hand, driving(jobs, window=15):
        batch = half_done(jobs, hand, completion_window="2s")
        batch = wait_for(jobs, batch)
    output, errors = read(jobs, batch.output_file_id), read(jobs, batch.error_file_id)
    assert (batch.status, batch.completed, batch.failed) == ("expired", 10, 30)
    assert set(output) == {f"line-{n}" for n in range(10)}
    assert set(errors) == {f"line-{n}" for n in range(10, 40)}
    assert {(r["response"], r["error"]["code"]) for r in errors.values()} == {(None, "batch_expired")}
    assert batch.to_dict()["expired_at"] is not None
    assert not list(jobs.client.scan_iter(f"{keys.PREFIX}job:*"))


def test_a_cancelled_batch_leaves_what_is_done(jobs: Jobs) -> None:
    """Cancelling ends its jobs, the running ones too; what was answered by then is in the output."""
    with Farmhand(jobs.settings, tokens_per_beat=2) as hand, driving(jobs, window=15):
        batch = half_done(jobs, hand)
        assert Batches(jobs).cancel(batch.id, TENANT).status == "cancelling"
        batch = wait_for(jobs, batch)
    assert (batch.status, batch.completed, batch.failed) == ("cancelled", 10, 30)
    assert set(read(jobs, batch.output_file_id)) == {f"line-{n}" for n in range(10)}
    errors = read(jobs, batch.error_file_id)
    assert {record["error"]["code"] for record in errors.values()} == {"batch_cancelled"}
    assert all(batch.to_dict()[name] for name in ("cancelling_at", "cancelled_at"))


def test_a_batch_that_nobody_drove_can_be_cancelled(jobs: Jobs) -> None:
    """A worker that comes later settles it without running a line."""
    batch = start(jobs, [line(n) for n in range(5)])
    Batches(jobs).cancel(batch.id, TENANT)
    with driving(jobs):
        batch = wait_for(jobs, batch)
    assert (batch.status, batch.total, batch.failed, submitted(jobs)) == ("cancelled", 5, 5, 0)


def test_batches_take_turns(jobs: Jobs) -> None:
    """A driver of one batch at a time leaves a long one for others that wait, and comes back to it."""
    with Farmhand(jobs.settings, tokens_per_beat=0) as hand, driving(jobs, active=1, turn_s=0.1, window=8):
        long = start(jobs, [line(n) for n in range(60)])
        wait_until(lambda: submitted(jobs) == 8, why="the long batch to begin")
        short = start(jobs, [line(n) for n in range(4)])
        wait_until(lambda: submitted(jobs) == 12, why="the short batch to begin")
        hand.tokens_per_beat = 1_000
        assert wait_for(jobs, short).completed == 4
        assert wait_for(jobs, long).completed == 60
    assert submitted(jobs) == 64


def test_a_store_that_fails_is_waited_for(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are written when the store is back; no line is run again."""
    monkeypatch.setattr("workers.system.batches.ROOM_PAUSE_S", 0.2)
    folder = jobs.settings.local.folder / "files" / "batches"
    with Farmhand(jobs.settings, tokens_per_beat=0) as hand, driving(jobs):
        batch = start(jobs, [line(n) for n in range(20)])
        wait_until(lambda: submitted(jobs) == 20, why="the jobs")
        folder.write_text("in the way")
        hand.tokens_per_beat = 1_000
        wait_until(lambda: int(jobs.client.hget(keys.TOTALS, "succeeded") or 0) == 20, why="the answers")  # type: ignore[arg-type]
        with pytest.raises(StoreUnavailable):
            open_store(jobs.settings).writer("batches/x")
        wait_until(lambda: due_later(jobs, batch), why="the batch to be left for later")
        assert Batches(jobs).get(batch.id, TENANT).completed == 0
        folder.unlink()
        batch = wait_for(jobs, batch)
    assert (batch.completed, submitted(jobs)) == (20, 20)


def test_a_server_without_memory_is_waited_for(jobs: Jobs) -> None:
    """A server that takes no new jobs fails no batch, however long it lasts."""
    batch = start(jobs, [line(n) for n in range(20)])
    jobs.client.config_set("maxmemory", int(jobs.client.info("memory")["used_memory"] * 0.9))
    try:
        with Farmhand(jobs.settings), driving(jobs):
            wait_until(lambda: refused(jobs) >= 3, why="some refusals")
            jobs.client.config_set("maxmemory", 0)
            batch = wait_for(jobs, batch)
    finally:
        jobs.client.config_set("maxmemory", 0)
    assert (batch.status, batch.completed) == ("completed", 20)


def refused(jobs: Jobs) -> int:
    """How many calls found no memory."""
    return int(jobs.client.info("errorstats").get("errorstat_OOM", {}).get("count", 0))


def due_later(jobs: Jobs, batch: Batch) -> bool:
    """Whether a batch is due sooner than the lease of somebody who drives it would end."""
    seconds, microseconds = jobs.client.time()  # type: ignore[misc]
    score = float(jobs.client.zscore(keys.BATCHES_DUE, batch.id) or "inf")  # type: ignore[arg-type]
    return score < seconds * 1000 + microseconds / 1000 + 300


def test_a_batch_that_meets_a_defect_again_and_again_ends(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried a few times; then it fails with what was answered so far, and holds up nobody."""
    monkeypatch.setattr("workers.system.batches.BUG_PAUSE_S", 0.05)
    real = Tally.settle

    def settle(tally: Tally, number: int, usage: Usage | None) -> None:
        if number == 8:
            raise ZeroDivisionError
        real(tally, number, usage)

    monkeypatch.setattr(Tally, "settle", settle)
    with Farmhand(jobs.settings), driving(jobs, window=2, flush_s=0.0):
        batch = wait_for(jobs, start(jobs, [line(n) for n in range(20)]))
    assert (batch.status, batch.errors[0]["code"]) == ("failed", "internal_error")
    assert 0 < len(read(jobs, batch.output_file_id)) == batch.completed <= 8


def test_a_stopped_driver_leaves_the_batch_at_once(jobs: Jobs) -> None:
    """What it had heard is written, and the next one need not wait for a lease to end."""
    with Farmhand(jobs.settings, tokens_per_beat=2) as hand:
        with driving(jobs, flush_s=60.0):
            batch = start(jobs, [line(n, max_tokens=2 if n < 10 else 50) for n in range(40)])
            wait_until(lambda: int(jobs.client.hget(keys.TOTALS, "succeeded") or 0) >= 10, why="some answers")  # type: ignore[arg-type]
        assert Batches(jobs).get(batch.id, TENANT).completed > 0
        assert due_later(jobs, batch)
        hand.tokens_per_beat = 1_000
        with driving(jobs):
            assert wait_for(jobs, batch).completed == 40
    assert submitted(jobs) == 40


def test_batches_may_share_their_input(jobs: Jobs) -> None:
    """What a batch reads is not its own: another may read the same file at the same time."""
    shared = upload(jobs, (json.dumps(line(1)) + "\n").encode())
    asked = BatchRequest(input_file_id=shared, endpoint=COMPLETIONS)
    made = [Batches(jobs).add(asked, TENANT) for _ in range(2)]
    with Farmhand(jobs.settings), driving(jobs):
        assert [wait_for(jobs, batch).completed for batch in made] == [1, 1]
    assert submitted(jobs) == 2
