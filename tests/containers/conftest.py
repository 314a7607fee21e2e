"""Fixtures for tests of images."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.containers.buildah import Buildah


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """The targets api and flower of the real Dockerfile, built here."""
    buildah = Buildah(tmp_path_factory.mktemp("buildah"))
    try:
        buildah.make_base()
        for target in ("api", "flower"):
            buildah.build(target)
        yield buildah
    finally:
        buildah.remove()
