"""The janitor at a real file store and a real server."""

from __future__ import annotations

import pytest

from farm import keys
from farm.ledger.files import Files
from farm.ledger.jobs import Jobs
from tests.batching import TENANT, upload
from workers.system.janitor import Janitor


def test_a_file_that_withstands_holds_up_no_other(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a turn of one path, the first of two can't be deleted: the other is, and the first once it can be."""
    monkeypatch.setattr("workers.system.janitor.MOST", 1)
    ledger, janitor, folder = Files(jobs), Janitor(jobs), jobs.settings.local.folder / "files" / "files"
    stuck, good = upload(jobs, b"one"), upload(jobs, b"two")
    (folder / stuck).unlink()
    (folder / stuck / "in the way").mkdir(parents=True)
    ledger.drop(stuck, TENANT)
    ledger.drop(good, TENANT)

    while janitor.clean():
        pass
    assert not (folder / good).exists()
    assert jobs.client.zrange(keys.FILES_TRASH, 0, -1) == [f"files/{stuck}"]

    (folder / stuck / "in the way").rmdir()
    (folder / stuck).rmdir()
    (folder / stuck).write_bytes(b"one")
    jobs.client.zadd(keys.FILES_TRASH, {f"files/{stuck}": 0})
    while janitor.clean():
        pass
    assert (list(folder.iterdir()), jobs.client.exists(keys.FILES_TRASH)) == ([], 0)
