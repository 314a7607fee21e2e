"""Files in the ledger: whose they are, how long they are kept, and what is left to delete."""

from __future__ import annotations

import pytest

from farm import keys
from farm.batch_contracts import COMPLETIONS, BatchRequest
from farm.ledger.batches import Batches
from farm.ledger.driving import Driving
from farm.ledger.files import File, FileInUse, FileNotFound, Files, Order, StorageFull
from farm.ledger.trash import Trash
from farm.local.environ import with_values
from tests.integration.ledger.farmhand import Field


@pytest.fixture
def files(field: Field) -> Files:
    return Files(field.jobs)


@pytest.fixture
def trash(field: Field) -> Trash:
    return Trash(field.jobs)


def add(files: Files, number: int, tenant: str = "ann", **more: object) -> File:
    values = {"filename": f"{number}.jsonl", "purpose": "batch", "size": 10_000, **more}
    return files.add(f"file-{number}", tenant, f"files/{number}", **values)  # type: ignore[arg-type]


def test_a_file_is_its_tenants_alone(files: Files) -> None:
    """Read, listed, deleted: another tenant's file is one that is not there."""
    made = add(files, 1)
    assert files.get("file-1", "ann") == made
    for call in (lambda: files.get("file-1", "ben"), lambda: files.drop("file-1", "ben")):
        with pytest.raises(FileNotFound):
            call()
    assert files.page("ben").files == []
    assert files.page("ann").files == [made]


def test_lists_come_in_pages_of_one_purpose(field: Field, files: Files) -> None:
    """The newest first or last, from any of them on, without one that was deleted meanwhile."""
    for number in range(1, 8):
        add(files, number, purpose="batch" if number % 2 else "batch_output")
        field.later(5)
    ids = [file.id for file in files.page("ann").files]
    assert ids == [f"file-{number}" for number in range(7, 0, -1)]
    assert [file.id for file in files.page("ann", order="asc", purpose="batch").files] == ids[::-1][::2]
    first = files.page("ann", limit=3)
    assert ([file.id for file in first.files], first.has_more) == (ids[:3], True)
    files.drop("file-4", "ann")
    rest = files.page("ann", limit=3, after="file-5")
    assert ([file.id for file in rest.files], rest.has_more) == (["file-3", "file-2", "file-1"], False)


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("gap_ms", [0, 5])
def test_a_list_goes_on_where_a_deleted_file_stood(field: Field, files: Files, order: Order, gap_ms: int) -> None:
    """Who deletes each page before asking for the next one sees every file once, also those made in one moment. What
    was never in the list, or is gone for over an hour, is an error that says what to do."""
    for number in range(1, 8):
        add(files, number)
        field.client.zadd(keys.files("ann"), {f"file-{number}": 1000 * field.client.time()[0] + number * gap_ms})
    stays = files.page("ann", order=order, limit=2).files[-1].id
    seen, after = [], None
    while True:
        page = files.page("ann", order=order, after=after, limit=2)
        seen += [file.id for file in page.files]
        after = seen[-1]
        for file in page.files:
            if file.id != stays:
                files.drop(file.id, "ann")
        if not page.has_more:
            break
    assert seen == sorted((f"file-{number}" for number in range(1, 8)), reverse=order == "desc")
    assert [file.id for file in files.page("ann", order=order, after=seen[0]).files] == [stays]
    for tenant, unknown in (("ann", "file-8"), ("ben", seen[0])):
        with pytest.raises(FileNotFound, match=f"after: {unknown} is not in this list; list from its start"):
            files.page(tenant, after=unknown)
    field.later(3_600_001)
    with pytest.raises(FileNotFound, match="list from its start"):
        files.page("ann", after=seen[0])


def test_a_tenant_has_so_much_room(field: Field) -> None:
    """What no longer fits is refused, small files count for 4 KiB, and what is deleted makes room."""
    files = Files(with_room(field, 1 << 20))
    for number in range(255):
        add(files, number, size=1)
    files.check_room("ann", 4096)
    with pytest.raises(StorageFull):
        files.check_room("ann", 4097)
    with pytest.raises(StorageFull):
        add(files, 255, size=4097)
    assert add(files, 255, size=4096).size == 4096
    add(files, 256, tenant="ben", size=1 << 20)
    files.drop("file-3", "ann")
    add(files, 257, size=1)


def with_room(field: Field, tenant_bytes: int):  # type: ignore[no-untyped-def]
    field.jobs.settings = with_values(field.jobs.settings, files={"tenant_bytes": tenant_bytes})
    return field.jobs


def test_a_file_goes_when_its_time_has_come(field: Field, files: Files, trash: Trash) -> None:
    """It is gone for its tenant at once, and for the store when somebody cleans up; its room is there again."""
    add(files, 1, keep_s=3600.0)
    add(files, 2)
    field.later(3_599_000)
    assert trash.drop_expired(10) == 0
    field.later(2_000)
    with pytest.raises(FileNotFound):
        files.get("file-1", "ann")
    assert [file.id for file in files.page("ann").files] == ["file-2"]
    assert trash.drop_expired(10) == 1
    assert trash.paths(10) == ["files/1"]
    trash.deleted("files/1")
    assert trash.paths(10) == []
    assert field.client.hget(keys.FILE_BYTES, "ann") == "10000"


def test_what_was_never_registered_is_deleted(field: Field, files: Files, trash: Trash) -> None:
    """A path that was announced is trash after a day, unless it became a file."""
    trash.announce("files/1")
    trash.announce("files/9")
    add(files, 1)
    assert trash.paths(10) == []
    field.later(86_401_000)
    assert trash.paths(10) == ["files/9"]


def test_a_batchs_input_stays_until_the_batch_ends(field: Field, files: Files, trash: Trash) -> None:
    """It is neither deleted nor does it expire while the batch may still read it."""
    add(files, 1, keep_s=3600.0)
    batch = Batches(field.jobs).add(BatchRequest(input_file_id="file-1", endpoint=COMPLETIONS), "ann")
    with pytest.raises(FileInUse):
        files.drop("file-1", "ann")
    field.later(3_601_000)
    trash.drop_expired(10)
    assert files.get("file-1", "ann", even_expired=True).id == "file-1"
    driving = Driving(field.jobs, "barn")
    drive = driving.take()
    assert drive is not None
    driving.end(drive, "failed", [])
    assert Batches(field.jobs).get(batch.id, "ann").status == "failed"
    trash.drop_expired(10)
    with pytest.raises(FileNotFound):
        files.get("file-1", "ann", even_expired=True)
