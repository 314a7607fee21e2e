"""The engine takes no more of the machine than it may."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.engine.machine import free_bytes, usable_cores

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("quota", "most"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", 4096), ("", 4096)]
)
def test_cores_respect_the_control_group(tmp_path: Path, quota: str, most: int) -> None:
    """A container with one core's quota gets one thread, and every process at least one."""
    if quota:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    assert 1 <= usable_cores(tmp_path) <= most


def test_memory_respects_the_control_group(tmp_path: Path) -> None:
    """Free memory is the machine's or the container's, whichever is less."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 4000 kB\nMemAvailable:  2000 kB\n")
    assert free_bytes(tmp_path, meminfo) == 2000 * 1024
    (tmp_path / "memory.max").write_text("1500000")
    (tmp_path / "memory.current").write_text("1000000")
    assert free_bytes(tmp_path, meminfo) == 500_000
    (tmp_path / "memory.max").write_text("max")
    assert free_bytes(tmp_path, meminfo) == 2000 * 1024
