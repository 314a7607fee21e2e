"""Fixtures for tests of the ledger."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from farm.ledger.jobs import Jobs
from farm.local.server import EmbeddedServer
from tests.integration.ledger.farmhand import Field
from tests.integration.ledger.invariants import check


@pytest.fixture
def field(jobs: Jobs) -> Iterator[Field]:
    """The ledger and the world around it; what must always hold is checked once more at the end."""
    world = Field(jobs)
    yield world
    check(world)


@pytest.fixture
def raw(server: EmbeddedServer) -> Iterator[redis.Redis]:
    """A client that decodes nothing."""
    with redis.Redis.from_url(server.url) as client:
        yield client
