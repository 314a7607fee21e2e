"""docs/metrics.md says what is exported."""

from __future__ import annotations

import pytest

from tests.metrics_table import PAGE, written

pytestmark = pytest.mark.fast


def test_the_table_is_current() -> None:
    """The tables of the page are those that the declarations make."""
    text = PAGE.read_text(encoding="utf-8")
    assert text == written(text), "run python -m tests.metrics_table --write"
