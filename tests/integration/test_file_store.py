"""Where files lie: a folder, or an S3 bucket; whole or not at all, and the same to use."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import botocore.session
import pytest

from farm.errors import SettingsError
from farm.file_store import FolderStore, RemoteStore, Store, StoreUnavailable, open_store
from farm.ledger.jobs import Jobs
from farm.local.environ import with_values
from farm.local.server import free_port
from farm.settings import load_settings
from tests.batching import driving, line, read, start, wait_for
from tests.conftest import wait_until
from tests.farmhand import Farmhand, quick

MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket on a server that speaks S3, for whom the driver's own settings say where it is."""
    port = free_port(0)
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    told = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "farm",
        "AWS_SECRET_ACCESS_KEY": "farm",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in told.items():
            patch.setenv(name, value)
        client = botocore.session.get_session().create_client("s3")

        def is_up() -> bool:
            try:
                client.list_buckets()
            except Exception:
                return False
            return True

        try:
            wait_until(is_up, why="the S3 server")
            client.create_bucket(Bucket="farm")
            yield "s3://farm/files-of-tests"
        finally:
            client.close()
            server.kill()
            server.wait()


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    url = str(tmp_path / "files") if request.param == "folder" else request.getfixturevalue("bucket")
    return open_store(load_settings({}, files={"url": url}))


def write(store: Store, path: str, *pieces: bytes) -> None:
    with store.writer(path) as writer:
        for piece in pieces:
            writer.write(piece)
        writer.commit()


def content(store: Store, path: str) -> bytes:
    with store.reader(path) as file:
        return file.read()


def test_what_is_written_is_read(store: Store) -> None:
    """Empty, small or in many pieces; anew in place of what was there; from any place on, line by line."""
    big = os.urandom(MEBIBYTE)
    write(store, "a/empty")
    write(store, "a/big", *[big] * 10)
    write(store, "a/small", b"first")
    write(store, "a/small", b"one\ntwo\n", b"three")
    assert content(store, "a/empty") == b""
    assert content(store, "a/big") == big * 10
    with store.reader("a/small") as file:
        file.seek(4)
        assert (file.readline(100), file.tell(), file.readline(2), file.read()) == (b"two\n", 8, b"th", b"ree")


def test_a_file_that_was_not_committed_is_not_there(store: Store) -> None:
    """Neither is part of one, and what was there before stays."""
    write(store, "b/old", b"old")
    for path in ("b/old", "b/new"):
        with store.writer(path) as writer:
            writer.write(b"x" * 20 * MEBIBYTE)
    assert content(store, "b/old") == b"old"
    with pytest.raises(FileNotFoundError):
        store.reader("b/new").read()


def test_what_is_deleted_is_gone(store: Store) -> None:
    """A file, or a folder with all in it; what is not there may be deleted too."""
    for path in ("c/1", "c/2", "d/1"):
        write(store, path, b"x")
    store.delete("c/1")
    store.delete("c/1")
    assert content(store, "c/2") == b"x"
    store.delete("c/")
    store.delete("nothing/")
    with pytest.raises(FileNotFoundError):
        store.reader("c/2").read()
    assert content(store, "d/1") == b"x"


def test_a_batch_runs_on_s3(jobs: Jobs, bucket: str) -> None:
    """Input, parts and results lie in the bucket; only the results stay."""
    jobs.settings = with_values(quick(jobs.settings), files={"url": load_settings({}, files={"url": bucket}).files.url})
    with Farmhand(jobs.settings), driving(jobs):
        batch = wait_for(jobs, start(jobs, [line(n) for n in range(50)] + [{"custom_id": "bad"}]))
    assert (batch.completed, batch.failed) == (50, 1)
    assert len(read(jobs, batch.output_file_id)) == 50
    assert set(read(jobs, batch.error_file_id)) == {"bad"}


def test_a_folder_is_its_owners_alone(tmp_path: Path) -> None:
    """Nobody else on the machine reads prompts, and no half-written file is left."""
    store = FolderStore(tmp_path / "files")
    write(store, "a/b", b"x")
    assert stat.S_IMODE((tmp_path / "files" / "a").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "files" / "a" / "b").stat().st_mode) == 0o600
    with store.writer("a/c") as writer:
        writer.write(b"x")
    assert [path.name for path in (tmp_path / "files" / "a").iterdir()] == ["b"]


def test_trouble_is_told_without_secrets(tmp_path: Path) -> None:
    """A store that does not answer can be tried again; one that can't be is refused by the setting's name."""
    (tmp_path / "files").write_text("in the way")
    with pytest.raises(StoreUnavailable):
        FolderStore(tmp_path / "files").writer("a/b")
    with pytest.raises(SettingsError, match="FARM_FILES__URL"):
        RemoteStore("wibble://user:hunter2@example.com/x")
    with pytest.raises(SettingsError, match="FARM_FILES__URL") as refused:
        RemoteStore("gdrive://user:hunter2@example.com/x")
    assert "hunter2" not in str(refused.value)


def test_without_a_setting_files_lie_in_the_farms_folder(tmp_path: Path) -> None:
    """The API and the workers of a local farm find them there."""
    settings = load_settings({}, local={"state_dir": tmp_path})
    write(open_store(settings), "a", b"x")
    assert (tmp_path / "files" / "a").read_bytes() == b"x"
    write(open_store(load_settings({}, files={"url": f"file://{tmp_path}/b"})), "a", b"y")
    assert (tmp_path / "b" / "a").read_bytes() == b"y"


def test_what_a_killed_writer_left_goes_with_its_file(tmp_path: Path) -> None:
    """A file that was begun and never finished is deleted with the name that it was to have."""
    store = FolderStore(tmp_path)
    code = "import os, sys; from pathlib import Path; from farm.file_store import FolderStore as Store; "
    code += "writer = Store(Path(sys.argv[1])).writer('files/one'); writer.write(b'half'); os._exit(0)"
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, timeout=60)
    assert len(list((tmp_path / "files").iterdir())) == 1
    write(store, "files/one", b"whole")
    write(store, "files/onerous", b"another")
    store.delete("files/one")
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["onerous"]
