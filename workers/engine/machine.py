"""What this process may use of the machine: cores and memory, seen through affinity and control groups."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """Cores that this process may keep busy: its affinity, cut by the control group's quota; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        cores = min(cores, int(quota) // int(period))
    return max(1, cores)


def free_bytes(cgroup: Path = _CGROUP, meminfo: Path = _MEMINFO) -> int:
    """Memory that can still be taken: what the machine has available, cut by the control group's limit; in bytes."""
    lines = (line.split() for line in _read(meminfo).splitlines())
    free = next((int(line[1]) * 1024 for line in lines if line[0] == "MemAvailable:"), 4 << 30)
    limit, used = _read(cgroup / "memory.max"), _read(cgroup / "memory.current")
    if limit.isdigit() and used.isdigit():
        free = min(free, int(limit) - int(used))
    return max(0, free)


def _read(path: Path) -> str:
    """A file's text, or "" where there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
