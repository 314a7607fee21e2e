"""Capacity on paper follows from what was measured."""

from __future__ import annotations

import json

import pytest

from benchmarks import capacity

pytestmark = pytest.mark.fast

FOUND = json.loads(capacity.RECORD.read_text(encoding="utf-8"))


def test_the_page_has_what_was_measured() -> None:
    """docs/capacity.md holds the tables of the figures that are kept, and no others."""
    assert capacity.tables(FOUND) in capacity.PAGE.read_text(encoding="utf-8")


def test_needs_grow_with_gpus_and_with_shorter_jobs() -> None:
    """Twice the GPUs need twice of everything; the same tokens in shorter jobs need more."""
    one, two = (capacity.need(FOUND, gpus, 500, 200, 2) for gpus in (1_000, 2_000))
    assert [two[name] / one[name] for name in one] == pytest.approx([2.0] * len(one))
    assert capacity.need(FOUND, 1_000, 500, 20, 2)["cores"] > one["cores"]


def test_one_server_carries_what_keeps_it_half_busy() -> None:
    """The most GPUs of a server take half a core of it, by the measured cost of workers, jobs and tokens."""
    gpus = capacity.most_gpus(FOUND, 500, 200, 2)
    spent = [FOUND[name]["cpu_us"] for name in ("idle_worker_second", "job", "token")]
    counts = [gpus / 2, gpus * 500 / 200, gpus * 500]
    assert sum(count * us for count, us in zip(counts, spent, strict=True)) == pytest.approx(500_000)
    assert capacity.need(FOUND, gpus, 500, 200, 2)["servers"] == pytest.approx(1.0)
