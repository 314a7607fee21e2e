"""Fixtures for tests of the engine."""

from __future__ import annotations

import pytest

import tests.engine.gpu  # noqa: F401  (sets how Triton runs, before anything imports it)
from tests.conftest import tool
from workers.engine.native import build


@pytest.fixture(scope="session")
def compiler() -> None:
    """A C++ compiler. Without one the test skips at home and fails in CI."""
    try:
        build.find_compiler()
    except build.BuildFailed:
        tool("g++", "g++")
