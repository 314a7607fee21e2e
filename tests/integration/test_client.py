"""The Python client on a real server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from farm import Farm
from farm.ledger.jobs import Jobs
from farm.settings import Settings
from tests.farmhand import QUICK_KEEPER, QUICK_LEASE, Farmhand, text_of


@pytest.fixture
def quick(settings: Settings) -> Settings:
    """Settings with short leases, so that a dead worker is noticed soon."""
    return settings.model_copy(
        update={
            "lease": settings.lease.model_validate(QUICK_LEASE),
            "keeper": settings.keeper.model_validate(QUICK_KEEPER),
        }
    )


@pytest.fixture
def farm(quick: Settings, jobs: Jobs) -> Iterator[Farm]:
    """A client of the emptied server."""
    with Farm(quick) as client:
        yield client


def test_a_prompt_is_answered(farm: Farm, quick: Settings) -> None:
    """A submitted prompt comes back as a completion."""
    with Farmhand(quick):
        completion = farm.submit("hello", max_tokens=5).result(timeout=20)
    assert completion.text == text_of("hello", 5)
    assert completion.usage.completion_tokens == 5


def test_map(farm: Farm, quick: Settings) -> None:
    with Farmhand(quick):
        assert [r.text for r in farm.map([f"p{i}" for i in range(300)], max_tokens=3, window=20)] == [
            text_of(f"p{i}", 3) for i in range(300)
        ]
