"""One local farm with the default model for the whole tour."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from farm import Farm, load_settings


@pytest.fixture(scope="session")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """A farm with one worker, as ``farm up`` starts it, in a folder of its own."""
    folder: Path = tmp_path_factory.mktemp("farm")
    with Farm.local(load_settings(local={"state_dir": folder})) as running:
        yield running
