"""`python -m benchmarks.engine`: a baseline that is given less than the engine proves nothing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import engine as benchmark
from benchmarks.static import run_static
from benchmarks.workload import Item, save_bloom
from workers.engine.checkpoint import BloomConfig


def test_baselines_have_as_many_threads_as_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the engine's own kernels leave torch one thread; afterwards torch has what it had."""
    threads: list[int] = []

    def counted(model: Any, items: list[Item], batch: int) -> list[list[int]]:
        threads.append(torch.get_num_threads())
        return run_static(model, items, batch)

    monkeypatch.setattr(benchmark, "run_static", counted)
    monkeypatch.setattr(benchmark, "BENCHMARK", shape := BloomConfig(vocab=300, hidden=48, layers=2, heads=3))
    folder = save_bloom(tmp_path / "bloom", shape, seed=0, scale=6.0)
    options = argparse.Namespace(threads=2, requests=2, repeats=1, seed=0, skip_one_by_one=False)
    found = benchmark.measure(folder, options)
    assert threads[1:] == [2, 2]  # the first of all only warms up
    assert found["same_as_reference"] == 2
    assert torch.get_num_threads() == threads[0]
