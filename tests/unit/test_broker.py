"""Which queues a worker reads."""

from __future__ import annotations

import pytest

from farm.broker import foreign_queues, own_queue
from farm.settings import load_settings

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("model", "own", "foreign"),
    [
        ("tiny-bloom", "farm.tiny-bloom", ["farm.default", "celery", "farm.tiny-bloom:waiting"]),
        ("/models/default", "farm.default", ["celery", "farm.default:waiting"]),
    ],
)
def test_a_workers_own_queue_is_none_of_the_foreign_ones(model: str, own: str, foreign: list[str]) -> None:
    """Foreign queues are left alone while the ledger has no room; its own has the keeper's messages, too."""
    settings = load_settings({"FARM_MODEL__ID": model})
    assert (own_queue(settings), foreign_queues(settings)) == (own, foreign)
