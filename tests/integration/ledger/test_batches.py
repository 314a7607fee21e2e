"""Batches in the ledger: made once, driven by one at a time, ended once."""

from __future__ import annotations

import pytest

from farm import keys
from farm.batch_contracts import COMPLETIONS, BatchRequest, parse_batch_request
from farm.errors import IdempotencyConflict, InvalidRequest, QuotaExceeded
from farm.ledger.batches import Batch, BatchEnded, Batches, BatchNotFound, Status
from farm.ledger.driving import Driving, LeaseLost, Product, Progress
from farm.ledger.files import FileNotFound, Files
from farm.local.environ import with_values
from tests.integration.ledger.farmhand import Field


@pytest.fixture
def batches(field: Field) -> Batches:
    files = Files(field.jobs)
    files.add("file-1", "ann", "files/1", filename="in.jsonl", purpose="batch", size=9)
    files.add("file-2", "ann", "files/2", filename="out.jsonl", purpose="batch_output", size=9)
    return Batches(field.jobs)


def add(batches: Batches, tenant: str = "ann", file: str = "file-1", key: str | None = None, **more: object) -> Batch:
    return batches.add(BatchRequest(input_file_id=file, endpoint=COMPLETIONS, **more), tenant, key)  # type: ignore[arg-type]


def test_a_batch_needs_a_file_of_its_tenant_and_purpose(batches: Batches) -> None:
    """Another's file is one that is not there, and another purpose is told."""
    with pytest.raises(FileNotFound):
        add(batches, file="file-9")
    with pytest.raises(FileNotFound):
        add(batches, tenant="ben")
    with pytest.raises(InvalidRequest, match="purpose batch_output"):
        add(batches, file="file-2")
    made = add(batches, metadata={"night": "yes"})
    body = made.to_dict()
    assert (body["status"], body["object"], body["metadata"]) == ("validating", "batch", {"night": "yes"})
    assert body["expires_at"] - body["created_at"] == 86_400
    for call in (batches.get, batches.cancel):
        with pytest.raises(BatchNotFound):
            call(made.id, "ben")
    assert batches.page("ben").batches == []


def test_the_same_key_gives_the_same_batch(batches: Batches) -> None:
    """Another request under it is refused."""
    first = add(batches, key="night-7")
    assert add(batches, key="night-7") == first
    with pytest.raises(IdempotencyConflict):
        add(batches, key="night-7", completion_window="2h")
    assert add(batches).id != first.id
    assert len(batches.page("ann").batches) == 2


def test_a_tenant_has_so_many_open_batches(field: Field, batches: Batches) -> None:
    """One more is refused until one has ended."""
    field.jobs.settings = with_values(field.jobs.settings, batches={"open_batches": 2})
    batches, driving = Batches(field.jobs), Driving(field.jobs, "barn")
    add(batches)
    add(batches)
    with pytest.raises(QuotaExceeded):
        add(batches)
    drive = driving.take()
    assert drive is not None
    driving.end(drive, "failed", [])
    add(batches)


def test_lists_come_in_pages(field: Field, batches: Batches) -> None:
    """The newest first, and those whose time has passed are not on them."""
    made = []
    for _ in range(5):
        made.append(add(batches).id)
        field.later(5)
    field.client.delete(keys.batch(made[3]))
    first = batches.page("ann", limit=2)
    assert ([batch.id for batch in first.batches], first.has_more) == ([made[4], made[2]], True)
    rest = batches.page("ann", limit=2, after=made[2])
    assert ([batch.id for batch in rest.batches], rest.has_more) == ([made[1], made[0]], False)
    field.client.delete(keys.batch(made[1]))
    add(batches)
    assert made[1] not in field.client.zrange(keys.batches("ann"), 0, -1)
    assert [batch.id for batch in batches.page("ann", after=made[1]).batches] == [made[0]]
    with pytest.raises(BatchNotFound, match="after: batch_9 is not in this list; list from its start"):
        batches.page("ann", after="batch_9")
    field.client.delete(keys.batches("ann"))


@pytest.mark.parametrize("window", ["24h", "90s", "15m", "30d"])
def test_windows(window: str) -> None:
    """A window is a number with its unit, of up to thirty days."""
    asked = {"input_file_id": "file-1", "endpoint": COMPLETIONS, "completion_window": window}
    assert parse_batch_request(asked).completion_window == window


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"completion_window": "0h"}, "completion_window"),
        ({"completion_window": "31d"}, "completion_window"),
        ({"completion_window": "1 week"}, "completion_window"),
        ({"endpoint": "/v1/chat/completions"}, "endpoint"),
        ({"endpoint": None}, "endpoint"),
        ({"input_file_id": 7}, "input_file_id"),
        ({"input_file_id": None}, "input_file_id"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, "output_expires_after"),
        ({"output_expires_after": {"anchor": "created_at"}}, "output_expires_after"),
        ({"webhook_url": "ftp://example.com"}, "webhook_url"),
        ({"wibble": 1}, "wibble"),
    ],
)
def test_bad_requests_name_the_field(change: dict[str, object], field: str) -> None:
    """What can't be done is refused by name."""
    with pytest.raises(InvalidRequest) as refused:
        parse_batch_request({"input_file_id": "file-1", "endpoint": COMPLETIONS, **change})
    assert refused.value.field == field


def test_a_batch_has_one_driver(field: Field, batches: Batches) -> None:
    """Who falls silent loses it, and can write nothing any more: neither a step nor the end."""
    made = add(batches)
    slow, quick = Driving(field.jobs, "slow"), Driving(field.jobs, "quick")
    first = slow.take()
    assert first is not None
    assert quick.take() is None
    slow.advance(first, Progress(total=9, next_line=4, offset=30), ["part-1"], "in_progress")
    field.later(9_000)
    slow.keep(first)
    field.later(9_000)
    assert quick.take() is None
    field.later(2_000)
    second = quick.take()
    assert second is not None
    assert (second.id, second.step, second.parts) == (made.id, 1, ["part-1"])
    assert second.progress == Progress(total=9, next_line=4, offset=30)
    slow.keep(first)
    assert first.is_lost
    with pytest.raises(LeaseLost):
        slow.advance(first, Progress(total=9, next_line=9), ["part-2"])
    with pytest.raises(LeaseLost):
        slow.end(first, "completed", [])
    quick.advance(second, Progress(total=9, next_line=6), ["part-3"])
    assert field.client.lrange(keys.batch_parts(made.id), 0, -1) == ["part-1", "part-3"]


@pytest.mark.parametrize("ending", ["completed", "expired", "failed", "cancelled"])
def test_what_was_cancelling_is_cancelled(batches: Batches, field: Field, ending: Status) -> None:
    """A batch whose last line ends while it is being cancelled ends as cancelled, with the files that it has."""
    made, driving = add(batches), Driving(field.jobs, "barn")
    drive = driving.take()
    assert drive is not None
    driving.advance(drive, Progress(total=1, done=1, next_line=2), ["part"], "in_progress")
    assert batches.cancel(made.id, "ann").status == "cancelling"
    driving.advance(drive, drive.progress, status="finalizing")
    driving.end(drive, ending, [Product("output", "files/2", 9)])
    seen = batches.get(made.id, "ann")
    assert (seen.status, seen.completed, set(seen.stamps)) == (
        "cancelled",
        1,
        {"in_progress", "cancelling", "cancelled"},
    )
    assert seen.output_file_id == drive.file_id("output")
    assert batches.cancel(made.id, "ann") == seen
    assert field.client.hgetall(keys.TOTALS) == {"batches:cancelled": "1"}


def test_whoever_waited_longest_is_next(field: Field, batches: Batches) -> None:
    """A batch that is given back goes behind those that wait, which its driver hears of."""
    driving = Driving(field.jobs, "barn")
    first, second = add(batches), None
    held = driving.take()
    assert held is not None
    assert (held.id, held.others_wait) == (first.id, False)
    field.later(5)
    second = add(batches)
    driving.keep(held)
    assert held.others_wait
    field.later(5)
    driving.give_back(held)
    field.later(5)
    assert [drive.id for drive in (driving.take(), driving.take()) if drive] == [second.id, first.id]


def test_a_cancelled_batch_stays_so(field: Field, batches: Batches) -> None:
    """Its driver hears of it, and what it writes changes nothing about that; one that has ended can't be cancelled."""
    made, driving = add(batches), Driving(field.jobs, "barn")
    drive = driving.take()
    assert drive is not None
    assert batches.cancel(made.id, "ann").status == "cancelling"
    assert batches.cancel(made.id, "ann").status == "cancelling"
    driving.advance(drive, Progress(total=3), status="in_progress")
    assert drive.status == "cancelling"
    driving.end(drive, "cancelled", [])
    assert batches.cancel(made.id, "ann").status == "cancelled"
    done = add(batches)
    field.later(5)
    drive = driving.take()
    assert drive is not None
    driving.end(drive, "completed", [Product("output", "files/out", 123)])
    with pytest.raises(BatchEnded):
        batches.cancel(done.id, "ann")


def test_the_end_is_written_once_with_its_files(field: Field, batches: Batches) -> None:
    """Status, files and webhook come in one step; the time of each status is told; then the record has its time."""
    made, driving = add(batches, webhook_url="https://example.com/"), Driving(field.jobs, "barn")
    drive = driving.take()
    assert drive is not None
    driving.advance(drive, Progress(total=3), status="in_progress")
    driving.advance(drive, Progress(total=3, done=2, bad=1, prompt_tokens=6, completion_tokens=9), ["p"], "finalizing")
    products = [Product("output", "files/out", 123), Product("error", "files/err", 45)]
    for _ in range(2):
        driving.end(drive, "completed", products)
    batch = batches.get(made.id, "ann")
    body = batch.to_dict()
    assert body["status"] == "completed"
    assert all(body[f"{name}_at"] for name in ("in_progress", "finalizing", "completed"))
    assert body["failed_at"] is body["cancelled_at"] is None
    assert body["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert (body["usage"]["input_tokens"], body["usage"]["output_tokens"], body["usage"]["total_tokens"]) == (6, 9, 15)
    output = Files(field.jobs).get(body["output_file_id"], "ann")
    assert (output.path, output.size, output.purpose) == ("files/out", 123, "batch_output")
    assert output.filename == f"{made.id}_output.jsonl"
    assert Files(field.jobs).get(body["error_file_id"], "ann").size == 45
    assert body["webhook"]["state"] == "pending"
    assert not field.client.exists(keys.batch_parts(made.id))
    assert field.client.hget(keys.PREFIX + "batches_open", "ann") is None
    assert driving.take() is None
    for key in (keys.batch(made.id), keys.batches("ann")):
        assert 29 * 86_400 < field.client.ttl(key) <= 30 * 86_400
    add(batches)
    assert field.client.ttl(keys.batches("ann")) == -1
