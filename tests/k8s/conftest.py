"""Fixtures for tests of the manifests."""

from __future__ import annotations

import pytest

from tests.k8s.manifests import EVERYTHING, OVERLAYS, Build, build


@pytest.fixture(params=OVERLAYS)
def everything(request: pytest.FixtureRequest) -> Build:
    """An overlay with all components."""
    return build(request.param, EVERYTHING)
