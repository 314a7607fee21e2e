"""Files over HTTP: as OpenAI's client sends them, and as strangers may."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import psutil
import pytest

from farm import keys
from farm.ledger.jobs import Jobs
from farm.local.environ import with_values
from farm.settings import Settings
from tests.api.conftest import WEB, Served, serving
from tests.api.openai_client import Client, upload
from tests.batching import driving, line
from tests.conftest import wait_until
from tests.farmhand import quick


@pytest.fixture
def api_settings(settings: Settings) -> Settings:
    """A farm whose API wants keys."""
    return with_values(quick(settings), api={"keys": "required"})


@pytest.fixture
def served(api_settings: Settings, jobs: Jobs) -> Iterator[Served]:
    jobs.settings = api_settings
    with serving(api_settings) as api:
        yield api


def test_files_are_listed_and_deleted(openai_of: Client, jobs: Jobs) -> None:
    """In pages, by purpose; what is deleted is gone, also from the store; a batch's input can't be deleted yet."""
    client = openai_of()
    files = [upload(client, [line(n)], f"{n}.jsonl") for n in range(5)]
    assert [one.filename for one in client.files.list(limit=2)] == [f"{n}.jsonl" for n in (4, 3, 2, 1, 0)]
    assert next(iter(client.files.list(order="asc", limit=10))).filename == "0.jsonl"
    assert client.files.list(purpose="batch_output").data == []
    stored = jobs.settings.local.folder / "files" / "files" / files[0].id
    assert stored.exists()
    assert client.files.delete(files[0].id).deleted
    assert not stored.exists()
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(files[0].id)
    batch = client.batches.create(input_file_id=files[1].id, endpoint="/v1/completions", completion_window="24h")
    with pytest.raises(openai.ConflictError) as used:
        client.files.delete(files[1].id)
    assert used.value.code == "file_in_use"
    client.batches.cancel(batch.id)
    with driving(jobs):
        wait_until(lambda: client.batches.retrieve(batch.id).status == "cancelled", why="the end of the batch")
    assert client.files.delete(files[1].id).deleted


def test_large_files_pass_through_little_memory(openai_of: Client, served: Served, jobs: Jobs) -> None:
    """Sixty mebibytes go up and come down, whole, and leave no trace in memory; one that is too large is refused."""
    client = openai_of()
    content = b"".join(b"%07d %s\n" % (n, b"x" * 1015) for n in range(60 * 1024))
    process = psutil.Process()
    small = client.files.create(file=("a.jsonl", content[:1024]), purpose="batch")
    assert client.files.content(small.id).read() == content[:1024]
    uploaded = client.files.create(file=("a.jsonl", content), purpose="batch")
    before = process.memory_info().rss
    received = 0
    with client.files.with_streaming_response.content(uploaded.id) as answer:
        for piece in answer.iter_bytes(1 << 20):
            assert piece == content[received : received + len(piece)]
            received += len(piece)
    assert received == len(content) == uploaded.bytes
    assert process.memory_info().rss - before < 30 << 20


def test_a_file_that_is_too_large_is_refused(jobs: Jobs, api_settings: Settings, key: Any) -> None:
    """By what its length says, or when it turns out so; nothing of it is kept."""
    settings = with_values(api_settings, files={"max_bytes": 100_000, "tenant_bytes": 1 << 20})
    with serving(settings) as api:
        headers = key("ann")
        for content in (b"x" * 100_001, b"x" * 3_000_000):
            answer = WEB.post(
                f"{api.url}/v1/files", files={"file": ("a", content)}, data={"purpose": "batch"}, headers=headers
            )
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "file_too_large")
        for _ in range(10):
            done = WEB.post(
                f"{api.url}/v1/files", files={"file": ("a", b"x" * 100_000)}, data={"purpose": "batch"}, headers=headers
            )
            assert done.status_code == 200, done.text
        full = WEB.post(
            f"{api.url}/v1/files", files={"file": ("a", b"x" * 50_000)}, data={"purpose": "batch"}, headers=headers
        )
        assert (full.status_code, full.json()["error"]["code"]) == (413, "storage_full")
    assert len(jobs.client.keys(f"{keys.PREFIX}file:*")) == 10  # type: ignore[arg-type]
    kept = [path for path in (settings.local.folder / "files" / "files").iterdir() if not path.name.startswith(".")]
    assert len(kept) == 10


@pytest.mark.parametrize(
    ("headers", "body", "status", "param"),
    [
        ({"content-type": "application/json"}, b"{}", 415, None),
        ({"content-type": "multipart/form-data"}, b"x", 400, "Content-Type"),
        ({"content-type": "multipart/form-data; boundary=" + "x" * 71}, b"x", 400, "Content-Type"),
        ({"content-type": "multipart/form-data; boundary=b"}, b"nonsense", 400, "body"),
        ({"content-type": "multipart/form-data; boundary=b"}, b"", 400, "body"),
        ("no file", b"--b\r\ncontent-disposition: form-data; name=purpose\r\n\r\nbatch\r\n--b--\r\n", 400, "file"),
        (
            "no end",
            b'--b\r\ncontent-disposition: form-data; name=file; filename="a"\r\n\r\nx',
            400,
            "body",
        ),
        (
            "file without a name",
            b"--b\r\ncontent-disposition: form-data; name=file\r\n\r\nx\r\n--b--\r\n",
            400,
            "file",
        ),
        (
            "a field twice",
            b"--b\r\ncontent-disposition: form-data; name=purpose\r\n\r\nbatch\r\n" * 2 + b"--b--\r\n",
            400,
            "purpose",
        ),
        (
            "a long field",
            b"--b\r\ncontent-disposition: form-data; name=purpose\r\n\r\n" + b"x" * 1025 + b"\r\n--b--\r\n",
            400,
            "purpose",
        ),
        ("many fields", b"--b\r\ncontent-disposition: form-data; name=a\r\n\r\n\r\n" * 17 + b"--b--\r\n", 400, "a"),
        (
            "an unknown field",
            b'--b\r\ncontent-disposition: form-data; name=file; filename="a"\r\n\r\nx\r\n'
            b"--b\r\ncontent-disposition: form-data; name=wibble\r\n\r\nx\r\n--b--\r\n",
            400,
            "wibble",
        ),
    ],
)
def test_odd_forms_are_refused(
    served: Served, jobs: Jobs, key: Any, headers: Any, body: bytes, status: int, param: str | None
) -> None:
    """Whatever is sent in place of a form with a file: an error that names the field, and nothing is kept."""
    if isinstance(headers, str):
        headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = WEB.post(f"{served.url}/v1/files", content=body, headers={**headers, **key("ann")})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
    assert not jobs.client.keys(f"{keys.PREFIX}file:*")


def test_a_filename_is_only_a_name(served: Served, key: Any) -> None:
    """Folders and odd characters are taken off; it comes back with the content."""
    headers = key("ann")
    names = {"../../etc/passwd": "passwd", "C:\\x\\y.jsonl": "y.jsonl", "ünï.jsonl": "ünï.jsonl", "..": "upload"}
    for given, kept in names.items():
        answer = WEB.post(
            f"{served.url}/v1/files", files={"file": (given, b"x")}, data={"purpose": "batch"}, headers=headers
        )
        assert answer.json()["filename"] == kept
        content = WEB.get(f"{served.url}/v1/files/{answer.json()['id']}/content", headers=headers)
        assert content.headers["content-disposition"].startswith("attachment; ")
        assert content.headers["x-content-type-options"] == "nosniff"


def test_a_slow_upload_has_time(api_settings: Settings, jobs: Jobs, key: Any) -> None:
    """What comes steadily may take longer than other requests; what stops coming is cut off."""
    settings, pause = with_values(api_settings, api={"request_s": 1.0}), threading.Event()

    def slowly() -> Iterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name=file; filename="a"\r\n\r\n'
        for _ in range(5):
            yield b"x" * (1 << 20)
            pause.wait(0.4)
        yield b"\r\n--b\r\ncontent-disposition: form-data; name=purpose\r\n\r\nbatch\r\n--b--\r\n"

    def stuck() -> Iterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name=file; filename="a"\r\n\r\nx'
        pause.wait(3)
        yield b"x"

    headers = {**key("ann"), "content-type": "multipart/form-data; boundary=b"}
    with serving(settings) as api:
        done = WEB.post(f"{api.url}/v1/files", content=slowly(), headers=headers)
        assert (done.status_code, done.json()["bytes"]) == (200, 5 << 20)
        try:
            late = WEB.post(f"{api.url}/v1/files", content=stuck(), headers=headers).status_code
        except httpx2.TransportError:
            late = 408
        assert late == 408
    assert len(jobs.client.keys(f"{keys.PREFIX}file:*")) == 1  # type: ignore[arg-type]
