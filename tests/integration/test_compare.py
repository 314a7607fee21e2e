"""The comparison of engines, on a model small enough for a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

CONTENDERS = ["one_by_one", "naive_celery", "static_16", "engine", "farm", "vllm"]
ROOT = Path(__file__).parents[2]


def test_every_engine_gives_the_same_tokens_at_the_exact_lengths() -> None:
    """transformers, a naive Celery farm, our engine and our farm agree; an engine that is missing is named.

    A length that differs ends the comparison, so that its end says that all were right.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compare", "--model", "tiny", "--only", *CONTENDERS],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "GOMP_SPINCOUNT": "1000"},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = json.loads(done.stdout.splitlines()[-1])["records"]
    rows = found["contenders"]
    assert set(rows) | set(found["left_out"]) == set(CONTENDERS)
    assert {"one_by_one", "naive_celery", "static_16", "engine", "farm"} <= set(rows)
    assert found["workload"]["distinct_tokens"] > 10, "the texts only repeat themselves: the comparison proves nothing"
    for name, row in rows.items():
        assert row["tokens_per_s"] > 0
        assert row["peak_bytes"] > 1 << 20
        if name != "one_by_one":
            assert row["identity"]["divergences"] == 0, f"{name} has tokens of its own"
    assert found["floor"]["steps"] > 0
