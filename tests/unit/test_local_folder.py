"""The state folder of a local farm: private, held by one, found by others."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

import pytest

from farm.local import folder as folder_module
from farm.local.discover import running_farm
from farm.local.folder import AlreadyRunning, Folder, Note
from farm.settings import load_settings

pytestmark = pytest.mark.fast


def _note() -> Note:
    return Note(
        "redis://:secret@127.0.0.1:7000/0",
        "http://127.0.0.1:5555",
        "http://127.0.0.1:8000",
        os.getpid(),
        1.0,
        ["local-1"],
        "tiny-bloom",
        "0.1.0",
    )


def test_the_note_is_for_its_owner_alone(tmp_path: Path) -> None:
    """farm.json holds a password: nobody else may read it or the folder, and whoever may finds the farm by it."""
    folder = Folder(tmp_path / "state")
    folder.claim()
    folder.write_note(_note())
    assert folder.note_path.stat().st_mode & 0o777 == 0o600
    assert folder.path.stat().st_mode & 0o777 == 0o700
    found = running_farm(load_settings(local={"state_dir": folder.path}))
    assert found is not None
    assert found["redis_url"] == _note().redis_url
    folder.remove_note()
    folder.release()
    assert running_farm(load_settings(local={"state_dir": folder.path})) is None


def test_the_second_hears_about_the_first(tmp_path: Path) -> None:
    """A folder has one farm; the refusal names its addresses, and not its password."""
    first, second = Folder(tmp_path), Folder(tmp_path)
    first.claim()
    with pytest.raises(AlreadyRunning, match="starting or stopping"):
        second.claim()
    first.write_note(_note())
    with pytest.raises(
        AlreadyRunning,
        match=re.escape(f"pid {os.getpid()}, Redis 127.0.0.1:7000, API http://127.0.0.1:8000, Flower http"),
    ) as told:
        second.claim()
    assert "secret" not in str(told.value)
    first.release()
    second.claim()
    second.release()


def test_data_that_a_server_still_writes_is_left_alone(tmp_path: Path) -> None:
    """The server of a farm that was killed holds its data until it has ended; a new one waits, then says so."""
    folder = Folder(tmp_path)
    folder.data.mkdir()
    server = os.open(folder.data / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(server, fcntl.LOCK_EX)
    with pytest.raises(AlreadyRunning, match="still writes"):
        folder.claim(timeout_s=0.1)
    os.close(server)
    folder.claim(timeout_s=0.1)
    folder.release()


def test_a_stale_note_is_cleared(tmp_path: Path) -> None:
    """What a killed farm left behind misleads nobody once the folder is claimed."""
    folder = Folder(tmp_path)
    folder.note_path.write_text("{torn")
    folder.claim()
    assert not folder.note_path.exists()
    folder.release()


def test_a_long_log_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs don't grow for ever: a long one becomes .log.1 when its part starts."""
    monkeypatch.setattr(folder_module, "LOG_BYTES", 3)
    folder = Folder(tmp_path)
    folder.logs.mkdir()
    path = folder.log_path("local-1")
    path.write_text("long")
    assert folder.log_path("local-1") == path
    assert not path.exists()
    assert path.with_suffix(".log.1").read_text() == "long"
