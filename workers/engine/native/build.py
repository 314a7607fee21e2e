"""Compile the C++ sources for this CPU, once, and keep the library in the user's cache.

    python -m workers.engine.native.build [--into FOLDER] [--march x86-64-v4+avx512vnni]

Without ``--into`` it fills the cache; with it, it writes the library under its hashed name, for images that have no
compiler when they run: build into ``workers/engine/native/prebuilt`` of the installed package, a file per ``--march``.
There, of x86-64-v4+avx512vnni, x86-64-v4 and x86-64-v3, the best that the CPU can run is taken.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
PREBUILT = SOURCES / "prebuilt"
COMPILERS = ("c++", "g++", "clang++")
TIMEOUT_S = 600
"""g++ takes 5 s, the extra's compiler, which builds its own libraries first, a minute or more; one that hangs must not
hang the engine's start for ever."""
UNFINISHED = ".unfinished.so"
# No -ffast-math: a NaN must come out as NaN, and sums must keep their order.
FLAGS = (
    "-O3",
    "-std=c++17",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-shared",
    "-fPIC",
    "-pthread",
)
_V3 = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_LEVELS = {"x86-64-v4+avx512vnni": _V4 | {"avx512_vnni"}, "x86-64-v4": _V4, "x86-64-v3": _V3}
"""CPU flags that a prebuilt library of this name needs; the best comes first."""


class BuildFailed(Exception):
    """No library can be had; the message says why and what would help."""


@dataclass(frozen=True, slots=True)
class Found:
    """A library's file, and whether this process compiled it just now."""

    path: Path
    compiled: bool


def find(march: str = "native", *, fresh: bool = False) -> Found:
    """The library for these sources and this CPU: prebuilt, from the cache, or compiled now. Raises BuildFailed.

    fresh: compile in any case, into the cache.
    """
    if march == "native" and not fresh and (prebuilt := _prebuilt()):
        return Found(prebuilt, False)
    compiler = find_compiler()
    path = cache_folder() / f"{_digest(compiler, march)}.so"
    if path.is_file() and not fresh:
        return Found(path, False)
    compile_to(path, compiler, march)
    return Found(path, True)


def find_compiler() -> list[str]:
    """The command of the C++ compiler: $CXX, the first on the path, or the extra's. Raises BuildFailed."""
    named = os.environ.get("CXX", "").split()
    for command in ([named] if named else []) + [[name] for name in COMPILERS]:
        if shutil.which(command[0]):
            return command
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++"]
    raise BuildFailed(
        "no C++ compiler on the path; install g++ (Debian: apt install g++), set CXX, "
        "or install the extra that brings one: pip install 'bloomfarm[native]'"
    )


def cache_folder() -> Path:
    """The user's folder for compiled libraries, made if missing. Raises BuildFailed if it is unsafe or can't be had."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        # A relative path is to be ignored, says the XDG specification.
        folder = (base if base.is_absolute() else Path.home() / ".cache") / "bloomfarm" / "native"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except (OSError, RuntimeError) as error:
        raise BuildFailed(
            f"no folder for the compiled library: {error}; set XDG_CACHE_HOME to a writable one"
        ) from None
    # Whoever may write here decides what code the engine runs.
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BuildFailed(f"{folder} belongs to or may be written by others; give it to this user with mode 0700")
    if not os.access(folder, os.W_OK):
        raise BuildFailed(f"{folder} can't be written; set XDG_CACHE_HOME to a folder that can")
    for path in folder.glob(f"*{UNFINISHED}"):
        # Left by a process that was killed while it compiled.
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > TIMEOUT_S:
                path.unlink()
    return folder


def compile_to(path: Path, compiler: list[str], march: str) -> None:
    """Compile the sources into ``path``, which appears whole or not at all. Raises BuildFailed."""
    try:
        handle, name = tempfile.mkstemp(suffix=UNFINISHED, dir=path.parent)
    except OSError as error:
        raise BuildFailed(f"{path.parent} takes no file: {error}") from None
    os.close(handle)
    unfinished = Path(name)
    command = [*compiler, *FLAGS, *_march_flags(march), "-o", name, str(SOURCES / "stage.cpp")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if done.returncode:
            reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[-200:].strip())
            raise BuildFailed(f"{' '.join(compiler)} ended with {done.returncode}: {reason}")
        # Images build as root and run as someone else.
        unfinished.chmod(0o755)
        unfinished.replace(path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildFailed(f"{' '.join(compiler)} could not be run: {error}") from None
    finally:
        unfinished.unlink(missing_ok=True)


def source_digest() -> str:
    """16 hex digits that change with any source or flag."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for path in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _digest(compiler: list[str], march: str) -> str:
    """Of the sources, the compiler and what it is told about the CPU."""
    facts = [
        source_digest(),
        march,
        _compiler_version(tuple(compiler)),
        platform.machine(),
        " ".join(sorted(cpu_flags())),
    ]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]


@functools.cache
def _compiler_version(compiler: tuple[str, ...]) -> str:
    try:
        done = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildFailed(f"{' '.join(compiler)} could not be run: {error}") from None
    return f"{' '.join(compiler)} {done.stdout}"


@functools.cache
def cpu_flags() -> frozenset[str]:
    """What this CPU can do, by the names of /proc/cpuinfo; empty where that is missing."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found.group(1).split()) if found else frozenset()


def _march_flags(march: str) -> list[str]:
    # clang and g++ on other machines than x86 spell the CPU's own set -mcpu=native.
    x86 = platform.machine() in {"x86_64", "AMD64"}
    level, *more = march.split("+")
    flags = [f"-march={level}" if x86 or level != "native" else "-mcpu=native", *(f"-m{name}" for name in more)]
    # Otherwise g++ keeps to half of the vectors' width, since old CPUs slow down on whole ones.
    return [*flags, "-mprefer-vector-width=512"] if x86 else flags


def _prebuilt() -> Path | None:
    """The best shipped library that this CPU can run."""
    for level, needed in _LEVELS.items():
        path = PREBUILT / f"{source_digest()}-{level}.so"
        if needed <= cpu_flags() and path.is_file():
            return path
    return None


def main() -> None:
    """Build as the command line says and print the library's path."""
    parser = argparse.ArgumentParser(prog="python -m workers.engine.native.build", description=__doc__.splitlines()[0])
    parser.add_argument("--into", type=Path, help="write the library here, under the name that `prebuilt` looks for")
    parser.add_argument("--march", default="native", help=f"the CPU to build for: native, {', '.join(_LEVELS)}")
    options = parser.parse_args()
    try:
        if options.into is None:
            path = find(options.march).path
        else:
            options.into.mkdir(parents=True, exist_ok=True)
            path = options.into / f"{source_digest()}-{options.march}.so"
            compile_to(path, find_compiler(), options.march)
    except BuildFailed as failed:
        sys.exit(str(failed))
    print(path)


if __name__ == "__main__":
    main()
