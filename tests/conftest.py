"""Fixtures for all tests: a real server on a free port, and waiting without sleeping."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import redis

from farm.ledger.jobs import Jobs
from farm.local.server import EmbeddedServer
from farm.settings import Settings, load_settings

# How fast a machine is says nothing about the product.
hypothesis.settings.register_profile(
    "farm", deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("farm")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU where there is none: nothing that can be installed would change that."""
    for_gpus = [item for item in items if item.get_closest_marker("gpu")]
    if not for_gpus:
        return
    import torch  # most runs do without

    if not torch.cuda.is_available():
        config.hook.pytest_deselected(items=for_gpus)
        items[:] = [item for item in items if item not in for_gpus]


def wait_until(condition: Callable[[], object], *, why: str, timeout_s: float = 30.0) -> None:
    """Return once ``condition`` holds; fail with ``why`` when it has not after ``timeout_s``."""
    pause = threading.Event()
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for: {why}"
        pause.wait(0.01)


def tool(name: str, package: str, *, of: str = "Debian's package") -> Path:
    """Where a program is: beside Python, in a virtual environment of its own in there, or on the path.

    Without it the test skips at home, saying what to install, and fails in CI.
    """
    beside = Path(sys.executable).parent
    places = [str(beside), str(beside.parent / name / "bin"), os.environ.get("PATH", "")]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        missing = f"{name} is missing: install {of} {package}"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return Path(found)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """One real server for the whole run; tests that use it find it empty."""
    running = EmbeddedServer(tmp_path_factory.mktemp("server"))
    running.start()
    yield running
    running.stop()


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[redis.Redis]:
    """A connection to the emptied server."""
    with redis.Redis.from_url(server.url, decode_responses=True) as connection:
        connection.flushall()
        yield connection


@pytest.fixture
def settings(server: EmbeddedServer, tmp_path: Path) -> Settings:
    """Settings that point at the test server and a fresh state folder."""
    return load_settings(redis={"url": server.url}, local={"state_dir": tmp_path / "state"})


@pytest.fixture
def jobs(settings: Settings, client: redis.Redis) -> Iterator[Jobs]:
    """The ledger on the emptied server."""
    ledger = Jobs(settings)
    yield ledger
    ledger.client.close()
