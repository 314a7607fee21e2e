"""How a client finds the local farm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from farm.errors import SettingsError
from farm.local.discover import discover, running_farm, with_url
from farm.settings import Settings, load_settings

URL = "redis://:secret@127.0.0.1:7000/0"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return with_url(load_settings(local={"state_dir": tmp_path}), None)


def leave_note(folder: Path, **said: object) -> None:
    (folder / "farm.json").write_text(json.dumps(said))


def test_a_running_farm_is_found(settings: Settings, tmp_path: Path) -> None:
    """A note whose process lives leads to its server; a URL that is set goes before it."""
    leave_note(tmp_path, redis_url=URL, pid=os.getpid(), flower_url=None)
    found = discover(settings).redis.url
    assert found is not None
    assert found.get_secret_value() == URL
    assert "secret" not in repr(discover(settings))
    named = with_url(settings, "redis://elsewhere")
    assert discover(named) is named


def test_what_a_dead_farm_left_is_ignored(settings: Settings, tmp_path: Path) -> None:
    """A note of a process that is gone, or one that is broken, is no farm; the error says what to do."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    notes: list[dict[str, object]] = [
        {"redis_url": URL, "pid": ended.pid},
        {"redis_url": URL, "pid": 0},
        {"redis_url": URL, "pid": "1"},
        {"redis_url": None, "pid": os.getpid()},
        {"pid": os.getpid()},
    ]
    for note in notes:
        leave_note(tmp_path, **note)
        assert running_farm(settings) is None
    for text in ("", "{", "[]", "null"):
        (tmp_path / "farm.json").write_text(text)
        assert running_farm(settings) is None
    (tmp_path / "farm.json").unlink()
    with pytest.raises(SettingsError, match="start one with: farm up"):
        discover(settings)


def test_the_model_of_a_running_farm_is_the_default(settings: Settings, tmp_path: Path) -> None:
    """Who finds a farm asks for the model that it serves, unless told another one."""
    leave_note(tmp_path, redis_url=URL, pid=os.getpid(), model="/models/my-bloom")
    assert discover(settings).model.name == "my-bloom"
    told = with_url(load_settings({"FARM_MODEL__ID": "tiny-bloom"}, local={"state_dir": tmp_path}), None)
    assert discover(told).model.name == "tiny-bloom"
