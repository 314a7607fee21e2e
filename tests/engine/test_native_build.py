"""The native library: compiled once, kept where others can't write, and done without where there is no compiler."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from workers.engine.native import build, library, selftest
from workers.engine.native.build import BuildFailed

needs_library = pytest.mark.usefixtures("compiler")


@needs_library
def test_the_self_test_finds_a_wrong_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that computes something else is not used, and the reason is a number."""
    right = library.open_library()
    assert selftest.mismatch(right) is None
    wrong = library.open_library()
    wrong.set_norm = lambda stage, which, weight, _: right.set_norm(stage, which, weight, weight)
    assert "differ from torch's" in (selftest.mismatch(wrong) or "")


@needs_library
@pytest.mark.parametrize("march", ["x86-64-v3", "x86-64"])
def test_narrow_vectors_compute_the_same(march: str, tmp_path: Path) -> None:
    """Libraries for older CPUs pass the self-test, too."""
    if os.uname().machine != "x86_64":
        pytest.skip("x86 only: the levels are x86's")
    path = tmp_path / "narrow.so"
    build.compile_to(path, build.find_compiler(), march)
    narrow = library.Library(path)
    assert narrow.width < 16
    assert selftest.mismatch(narrow) is None


@pytest.fixture
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of our own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@needs_library
def test_the_second_load_compiles_nothing(cache_home: Path) -> None:
    """And leaves a private folder with one whole file in it."""
    assert build.find().compiled
    assert not build.find().compiled
    folder = cache_home / "bloomfarm/native"
    assert len(list(folder.iterdir())) == 1
    assert folder.stat().st_mode & 0o777 == 0o700


@needs_library
def test_a_broken_library_is_built_anew(cache_home: Path) -> None:
    """A file that does not load is replaced, once."""
    path = build.find().path
    path.unlink()
    path.write_bytes(b"no library")
    assert library.open_library().version == library.VERSION
    assert path.stat().st_size > len(b"no library")


@pytest.mark.fast
@needs_library
def test_an_unsafe_folder_is_refused(cache_home: Path) -> None:
    """Others could put code there that the engine would run."""
    folder = cache_home / "bloomfarm/native"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(BuildFailed, match="0700"):
        build.find()


@pytest.mark.fast
def test_without_a_compiler_there_is_no_library_and_a_reason(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The farm runs on torch then."""
    monkeypatch.setenv("PATH", str(cache_home))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(BuildFailed, match=r"install g\+\+"):
        build.find()
    library.load.cache_clear()
    try:
        with capture_logs() as logs:
            assert library.load() is None
    finally:
        library.load.cache_clear()
    assert [log["event"] for log in logs] == ["native_stage_unavailable"]
    assert "install g++" in logs[0]["reason"]


@pytest.mark.fast
def test_the_compiler_of_the_extra_is_found_last(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``pip install 'bloomfarm[native]'`` serves a machine that has no other; $CXX and the path come first."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "ziglang")
    monkeypatch.setenv("PATH", str(cache_home))
    monkeypatch.delenv("CXX", raising=False)
    assert build.find_compiler() == [sys.executable, "-m", "ziglang", "c++"]
    compiler = cache_home / "g++"
    compiler.touch(mode=0o755)
    assert build.find_compiler() == ["g++"]


@needs_library
def test_a_failing_compiler_is_named(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its exit status, and no half-written file is left."""
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(BuildFailed, match="false ended with 1"):
        build.find()
    assert not list((cache_home / "bloomfarm/native").iterdir())


@needs_library
def test_what_a_killed_build_left_is_swept(cache_home: Path) -> None:
    """Half a library is removed once no build can still be at it."""
    folder = cache_home / "bloomfarm/native"
    folder.mkdir(parents=True, mode=0o700)
    old, new = folder / f"old{build.UNFINISHED}", folder / f"new{build.UNFINISHED}"
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    build.find()
    assert not old.exists()
    assert new.exists()


@needs_library
def test_a_folder_that_can_not_be_made_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only home costs speed, not the start."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BuildFailed, match="XDG_CACHE_HOME"):
        build.find()


@needs_library
def test_a_prebuilt_library_needs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that `--into` made is found by the sources' hash, if the CPU can run it."""
    level = next((level for level, needed in build._LEVELS.items() if needed <= build.cpu_flags()), None)
    if level is None:
        pytest.skip("this CPU runs no level that is prebuilt")
    monkeypatch.setattr("sys.argv", ["build", "--into", str(tmp_path), "--march", level])
    build.main()
    monkeypatch.setattr(build, "PREBUILT", tmp_path)
    monkeypatch.setattr(build, "find_compiler", lambda: pytest.fail("it looked for a compiler"))
    found = build.find()
    assert found.path.parent == tmp_path
    assert selftest.mismatch(library.Library(found.path)) is None
