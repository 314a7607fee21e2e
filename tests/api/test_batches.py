"""Files and batches as OpenAI's own client uses them, over sockets."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch

from farm.ledger.jobs import Jobs
from farm.local.environ import with_values
from farm.settings import Settings
from tests.api.conftest import WEB, Served, serving
from tests.api.openai_client import Client, upload
from tests.batching import driving, line
from tests.conftest import wait_until
from tests.farmhand import Farmhand, quick, text_of
from tests.receiver import Receiver
from workers.system.webhooks import WebhookSender

ROOT = Path(__file__).parents[2]


@pytest.fixture
def api_settings(settings: Settings) -> Settings:
    """A farm whose API wants keys."""
    return with_values(quick(settings), api={"keys": "required"}, webhooks={"allow": ["127.0.0.0/8"]})


@pytest.fixture
def served(api_settings: Settings, jobs: Jobs) -> Iterator[Served]:
    jobs.settings = api_settings
    with serving(api_settings) as api:
        yield api


def ended(client: openai.OpenAI, batch: Batch) -> Batch:
    final = ("completed", "failed", "expired", "cancelled")
    wait_until(lambda: client.batches.retrieve(batch.id).status in final, why="the end of the batch")
    return client.batches.retrieve(batch.id)


def test_a_batch_from_file_to_file(openai_of: Client, jobs: Jobs, tmp_path: Path) -> None:
    """Upload, create, poll, download: OpenAI's own client finds all that it knows, and each answer under its id."""
    client = openai_of()
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(line(n)) + "\n" for n in range(20)) + '{"custom_id": "bad", "body": {}}\n')
    with path.open("rb") as file:
        uploaded = client.files.create(file=file, purpose="batch")
    assert (uploaded.filename, uploaded.bytes, uploaded.purpose, uploaded.object) == (
        "prompts.jsonl",
        path.stat().st_size,
        "batch",
        "file",
    )
    assert client.files.content(uploaded.id).read() == path.read_bytes()
    batch = client.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/completions", completion_window="24h", metadata={"night": "7"}
    )
    assert (batch.status, batch.output_file_id, batch.metadata) == ("validating", None, {"night": "7"})
    with Farmhand(jobs.settings), driving(jobs):
        batch = ended(client, batch)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.usage is not None
    assert batch.request_counts.model_dump() == {"total": 21, "completed": 20, "failed": 1}
    assert batch.usage.output_tokens == 40
    assert batch.created_at <= (batch.in_progress_at or 0) <= (batch.finalizing_at or 0) <= (batch.completed_at or 0)
    assert (batch.expires_at or 0) - batch.created_at == 86_400
    assert batch.output_file_id is not None
    records = [json.loads(raw) for raw in client.files.content(batch.output_file_id).iter_lines()]
    texts = {record["custom_id"]: record["response"]["body"]["choices"][0]["text"] for record in records}
    assert texts == {f"line-{n}": text_of(f"prompt {n}", 2) for n in range(20)}
    assert all(record["id"].startswith("batch_req_") and record["error"] is None for record in records)
    assert batch.error_file_id is not None
    [error] = [json.loads(raw) for raw in client.files.content(batch.error_file_id).text.splitlines()]
    assert (error["custom_id"], error["response"]["status_code"]) == ("bad", 400)
    assert error["response"]["body"]["error"]["param"] == "prompt"
    assert [one.purpose for one in client.files.list()] == ["batch_output", "batch_output", "batch"]


def test_a_batch_can_be_cancelled_and_listed(openai_of: Client, jobs: Jobs) -> None:
    """What was answered by then is in the output; the list has the newest first."""
    client = openai_of()
    with Farmhand(jobs.settings, tokens_per_beat=2) as hand, driving(jobs):
        uploaded = upload(client, [line(n, max_tokens=2 if n < 5 else 2_000) for n in range(20)])
        first = client.batches.create(input_file_id=uploaded.id, endpoint="/v1/completions", completion_window="24h")
        wait_until(lambda: (client.batches.retrieve(first.id).request_counts or first).completed == 5, why="answers")  # type: ignore[union-attr]
        assert client.batches.cancel(first.id).status == "cancelling"
        hand.tokens_per_beat = 0
        batch = ended(client, first)
    assert batch.status == "cancelled"
    assert len(client.files.content(batch.output_file_id or "").text.splitlines()) == 5
    second = client.batches.create(input_file_id=uploaded.id, endpoint="/v1/completions", completion_window="24h")
    assert [one.id for one in client.batches.list(limit=1)] == [second.id, first.id]
    with pytest.raises(openai.NotFoundError):
        client.batches.cancel("batch_of_nobody")


def test_nobody_sees_anothers_files_or_batches(openai_of: Client) -> None:
    """On every path another tenant's file or batch is one that is not there, to the letter."""
    ann, ben = openai_of("ann"), openai_of("ben")
    uploaded = upload(ann, [line(1)])
    batch = ann.batches.create(input_file_id=uploaded.id, endpoint="/v1/completions", completion_window="24h")
    calls: list[Callable[[str, str], Any]] = [
        lambda file, _: ben.files.retrieve(file),
        lambda file, _: ben.files.content(file),
        lambda file, _: ben.files.delete(file),
        lambda file, _: ben.batches.create(input_file_id=file, endpoint="/v1/completions", completion_window="24h"),
        lambda _, batch: ben.batches.retrieve(batch),
        lambda _, batch: ben.batches.cancel(batch),
    ]
    nobodys = ("file-" + "0" * 32, "batch_" + "0" * 32)
    for call in calls:
        said = []
        for ids in ((uploaded.id, batch.id), nobodys):
            with pytest.raises(openai.NotFoundError) as raised:
                call(*ids)
            said.append(str(raised.value).replace(ids[0], "").replace(ids[1], ""))
        assert said[0] == said[1]
    assert (ben.files.list().data, ben.batches.list().data) == ([], [])
    assert ann.batches.retrieve(batch.id).status == "validating"


def test_scopes_hold(openai_of: Client) -> None:
    """A key that may only read uploads, deletes and cancels nothing; one that may only submit reads nothing."""
    both, reads, submits = openai_of(), openai_of(scopes=["read"]), openai_of(scopes=["submit"])
    uploaded = upload(both, [line(1)])
    made = {"input_file_id": uploaded.id, "endpoint": "/v1/completions", "completion_window": "24h"}
    batch = submits.batches.create(**made)  # type: ignore[arg-type]
    refused: list[Callable[[], Any]] = [
        lambda: upload(reads, [line(1)]),
        lambda: reads.files.delete(uploaded.id),
        lambda: reads.batches.create(**made),  # type: ignore[arg-type]
        lambda: reads.batches.cancel(batch.id),
        lambda: submits.files.retrieve(uploaded.id),
        lambda: submits.files.content(uploaded.id),
        lambda: submits.files.list(),
        lambda: submits.batches.retrieve(batch.id),
        lambda: submits.batches.list(),
    ]
    for call in refused:
        with pytest.raises(openai.PermissionDeniedError):
            call()
    assert reads.files.content(uploaded.id).read()
    assert reads.batches.retrieve(batch.id).id == batch.id


def test_what_is_refused_says_why(openai_of: Client) -> None:
    """Each with the field that is wrong, before anything is kept."""
    client = openai_of()
    uploaded = upload(client, [line(1)])
    make = client.batches.create
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: client.files.create(file=b"x", purpose="fine-tune"), "purpose"),
        (
            lambda: client.files.create(
                file=b"x", purpose="batch", expires_after={"anchor": "created_at", "seconds": 5}
            ),
            "expires_after[seconds]",
        ),
        (lambda: client.files.list(limit=0), "limit"),
        (
            lambda: make(input_file_id=uploaded.id, endpoint="/v1/embeddings", completion_window="24h"),
            "endpoint",
        ),
        (
            lambda: make(input_file_id=uploaded.id, endpoint="/v1/completions", completion_window="1y"),  # type: ignore[arg-type]
            "completion_window",
        ),
        (
            lambda: make(
                input_file_id=uploaded.id,
                endpoint="/v1/completions",
                completion_window="24h",
                extra_body={"webhook_url": "https://10.0.0.1/"},
            ),
            "webhook_url",
        ),
    ]
    for call, param in cases:
        with pytest.raises(openai.BadRequestError) as refused:
            call()
        assert refused.value.param == param
    assert len(client.files.list().data) == 1
    assert client.batches.list().data == []


def test_expiry_is_as_asked(openai_of: Client, jobs: Jobs) -> None:
    """Input and output are kept as long as they are told; else for thirty days."""
    client = openai_of()
    short = client.files.create(
        file=("a.jsonl", (json.dumps(line(1)) + "\n").encode()),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 7200},
    )
    assert (short.expires_at or 0) - short.created_at == 7200
    batch = client.batches.create(
        input_file_id=short.id,
        endpoint="/v1/completions",
        completion_window="24h",
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )
    with Farmhand(jobs.settings), driving(jobs):
        batch = ended(client, batch)
    output = client.files.retrieve(batch.output_file_id or "")
    assert (output.expires_at or 0) - output.created_at == 3600
    usual = upload(client, [line(1)])
    assert (usual.expires_at or 0) - usual.created_at == 30 * 86_400


def test_the_same_key_makes_one_batch(openai_of: Client) -> None:
    """A request that is sent again gives the same batch, another one under its key is refused."""
    client = openai_of()
    uploaded = upload(client, [line(1)])

    def make(window: Any = "24h") -> Batch:
        return client.batches.create(
            input_file_id=uploaded.id,
            endpoint="/v1/completions",
            completion_window=window,
            extra_headers={"Idempotency-Key": "night-7"},
        )

    assert make().id == make().id
    with pytest.raises(openai.UnprocessableEntityError):
        make("2h")
    assert len(client.batches.list().data) == 1


def test_webhooks_tell_of_batches_and_jobs(openai_of: Client, served: Served, jobs: Jobs, key: Any) -> None:
    """The end of a batch and of a job is sent as a read of it would show it; the read tells of the calls."""
    client, headers = openai_of(), key("ann")
    sender = WebhookSender(jobs)
    sender.start()
    try:
        with Receiver() as receiver, Farmhand(jobs.settings), driving(jobs):
            job = WEB.post(
                f"{served.url}/v1/jobs",
                json={"prompt": "A goat", "max_tokens": 2, "webhook_url": receiver.url},
                headers=headers,
            ).json()
            batch = client.batches.create(
                input_file_id=upload(client, [line(1)]).id,
                endpoint="/v1/completions",
                completion_window="24h",
                extra_body={"webhook_url": receiver.url},
            )
            wait_until(lambda: len(receiver.got) == 2, why="both calls")
            url = f"{served.url}{job['urls']['get']}"
            wait_until(
                lambda: WEB.get(url, headers=headers).json()["webhook"]["state"] == "delivered", why="the job's log"
            )
            events = {got.json["type"]: got.json["data"] for got in receiver.got}
    finally:
        sender.stop()
    shown = WEB.get(f"{served.url}{job['urls']['get']}", headers=headers).json()
    assert shown["webhook"]["calls"][0]["status"] == 204
    told = {name: value for name, value in shown.items() if name not in ("webhook", "urls")}
    assert events["job.succeeded"] == told
    assert events["batch.completed"]["id"] == batch.id
    assert events["batch.completed"]["request_counts"]["completed"] == 1
    refused = WEB.post(f"{served.url}/v1/jobs", json={"prompt": "x", "webhook_url": "https://[::1]/"}, headers=headers)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "webhook_url")


def test_the_example_of_the_page_works_when_pasted(api_settings: Settings, jobs: Jobs, tmp_path: Path) -> None:
    """The program of docs/batches.md, as it stands: ten lines go up, ten answers come down."""
    text = (ROOT / "docs" / "batches.md").read_text(encoding="utf-8")
    block = re.search(r"(?:^    .*\n|^\n)+", text[text.index("    import json") :], re.MULTILINE)
    assert block is not None
    settings = with_values(api_settings, api={"keys": "local"})
    jobs.settings = settings
    with serving(settings) as api, Farmhand(settings), driving(jobs):
        program = textwrap.dedent(block[0]).replace("http://127.0.0.1:8000", api.url)
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 0, done.stderr
    expected = {f"tale-{number} {text_of('Once upon a time', 16)}" for number in range(10)}
    assert set(done.stdout.splitlines()) == expected
