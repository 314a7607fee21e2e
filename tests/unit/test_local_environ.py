"""Settings on their way to a child process."""

from __future__ import annotations

import os

import pytest

from farm.local.environ import child_environ, with_values
from farm.settings import load_settings

pytestmark = pytest.mark.fast


def test_a_child_has_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a child reads from its environment equals what its parent holds, lists and secrets too."""
    monkeypatch.setenv("FARM_ENGINE__THREADS", "7")
    settings = load_settings(
        redis={"url": "redis://:secret@127.0.0.1:7000/0"},
        engine={"kind": "synthetic", "kv_bytes": 1 << 20},
        broker={"foreign_queues": ["other"]},
        lease={"lease_s": 3.5},
    )
    settings = with_values(settings, worker={"name": "local-1"}, engine={"threads": None})
    environ = child_environ(settings)
    for name in [name for name in os.environ if name.startswith("FARM_")]:
        monkeypatch.delenv(name)
    for name, text in environ.items():
        if name.startswith("FARM_"):
            monkeypatch.setenv(name, text)
    assert load_settings() == settings
    assert "FARM_ENGINE__THREADS" not in environ


def test_other_variables_are_passed_on() -> None:
    """A child keeps the rest of the environment: paths, proxies, CUDA's variables."""
    base = {"PATH": "/bin", "FARM_REDIS__URL": "redis://elsewhere", "FARM_REDIS_PORT": "tcp://10.0.0.1:6379"}
    environ = child_environ(load_settings(redis={"url": None}), base)
    assert environ == {"PATH": "/bin", "FARM_REDIS_PORT": "tcp://10.0.0.1:6379"}
