"""A small root file system from this machine's own files, to build on where no base image can be pulled.

It has what the Dockerfile takes for granted of python:slim: a shell, core utilities, Python and its libraries. Nothing
else, no compiler above all, so that what an image has beyond it came from the Dockerfile.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.conftest import tool

PROGRAMS = ("sh", "bash", "cat", "chmod", "date", "echo", "env", "id", "install", "ls", "mkdir", "mv", "rm", "sleep")
PROGRAMS += ("stat", "test", "touch", "tr", "uname", "groupadd", "useradd")
# Debian's own packages and what tests Python itself: not in the official image's standard library either.
_NOT_COPIED = shutil.ignore_patterns("site-packages", "dist-packages", "test", "idlelib", "__pycache__", "config-*")


def make(root: Path) -> Path:
    """Fill an empty folder; returns it."""
    for folder in ("bin", "etc", "lib", "proc", "root", "sys", "tmp", "usr/bin", "usr/local/bin", "usr/lib", "dev"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n", encoding="utf-8")
    (root / "etc" / "group").write_text("root:x:0:\n", encoding="utf-8")
    (root / "etc" / "hosts").write_text("127.0.0.1 localhost\n", encoding="utf-8")
    _copy_utc(root)
    binaries = [Path(shutil.which(name) or tool(name, "coreutils, passwd")) for name in PROGRAMS]
    for binary in binaries:
        shutil.copy(binary, root / "usr" / "bin" / binary.name)
    (root / "bin" / "sh").symlink_to("/usr/bin/sh")
    _copy_libraries(root, [*binaries, *_copy_python(root), *_common_libraries()])
    return root


def _copy_utc(root: Path) -> None:
    """The one time zone that Celery looks up."""
    zones = Path("/usr/share/zoneinfo")
    (root / zones.relative_to("/")).mkdir(parents=True)
    shutil.copy(zones / "UTC", root / zones.relative_to("/") / "UTC")


def _copy_python(root: Path) -> list[Path]:
    """Python under /usr/local, as the official image has it. Returns what needs shared libraries."""
    minor = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = Path(sysconfig.get_path("stdlib"))
    program = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    shutil.copy(program, root / "usr" / "local" / "bin" / minor)
    (root / "usr" / "local" / "bin" / "python3").symlink_to(minor)
    shutil.copytree(library, root / "usr" / "local" / "lib" / minor, ignore=_NOT_COPIED)
    return [program, *(library / "lib-dynload").glob("*.so")]


def _common_libraries() -> list[Path]:
    """What compiled packages may count on (manylinux): libc's own parts, and the compilers'."""
    program = shutil.which("ldconfig", path="/sbin:/usr/sbin:/bin:/usr/bin") or tool("ldconfig", "libc-bin")
    cache = subprocess.run([str(program), "-p"], capture_output=True, text=True, timeout=60, check=True).stdout
    found = re.findall(r"lib(?:c|m|dl|rt|util|pthread|resolv|gcc_s|stdc\+\+)\.so\.\d \(libc6,[^)]*\) => (\S+)", cache)
    return [Path(name) for name in found]


def _copy_libraries(root: Path, binaries: list[Path]) -> None:
    """All shared libraries that these need, to where the loader looks; the loader to its own place."""
    libraries = {path for path in binaries if ".so." in path.name}
    for path in sorted(libraries | _needed(binaries)):
        place = root / "usr" / "lib" / path.name
        if path.name.startswith("ld-linux"):
            place = root / path.relative_to("/")
            place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)


def _needed(binaries: list[Path]) -> set[Path]:
    listing = subprocess.run(
        ["ldd", *map(str, binaries)], capture_output=True, text=True, timeout=60, check=False
    ).stdout
    return {Path(found) for found in re.findall(r"^\s+(?:\S+ => )?(/\S+) \(0x", listing, re.MULTILINE)}
