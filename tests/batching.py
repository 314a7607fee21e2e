"""Batches for tests: input files made, outputs read, a driver at work."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from farm import keys
from farm.batch_contracts import COMPLETIONS, BatchRequest
from farm.file_store import open_store
from farm.ledger.batches import Batch, Batches
from farm.ledger.files import Files, new_file_id
from farm.ledger.jobs import Jobs
from farm.local.environ import with_values
from tests.conftest import wait_until
from workers.system.batches import BatchDriver

TENANT = "ann"


def line(number: int, **body: object) -> dict[str, Any]:
    """A good line, as OpenAI's clients write it."""
    fields = {"model": "tiny-bloom", "prompt": f"prompt {number}", "max_tokens": 2, **body}
    return {"custom_id": f"line-{number}", "method": "POST", "url": COMPLETIONS, "body": fields}


def upload(jobs: Jobs, content: bytes) -> str:
    """Put a file into the store and the ledger; returns its id."""
    file_id = new_file_id()
    path = f"files/{file_id}"
    with open_store(jobs.settings).writer(path) as writer:
        writer.write(content)
        writer.commit()
    return Files(jobs).add(file_id, TENANT, path, filename="in.jsonl", purpose="batch", size=len(content)).id


def start(jobs: Jobs, lines: Sequence[dict[str, Any]] | bytes, **request: object) -> Batch:
    """Make a batch of these lines."""
    content = lines if isinstance(lines, bytes) else "".join(json.dumps(one) + "\n" for one in lines).encode()
    asked = BatchRequest(input_file_id=upload(jobs, content), endpoint=COMPLETIONS, **request)  # type: ignore[arg-type]
    return Batches(jobs).add(asked, TENANT)


@contextmanager
def driving(jobs: Jobs, **changes: object) -> Iterator[BatchDriver]:
    """A driver at work."""
    own = Jobs(with_values(jobs.settings, batches={"flush_s": 0.2, **changes}))
    driver = BatchDriver(own, "sys")
    driver.start()
    try:
        yield driver
    finally:
        driver.stop()
        own.client.close()


def wait_for(jobs: Jobs, batch: Batch, timeout_s: float = 60.0) -> Batch:
    """The batch once it has ended."""
    batches = Batches(jobs)
    wait_until(lambda: batches.get(batch.id, TENANT).finished_at, why=f"the end of {batch.id}", timeout_s=timeout_s)
    return batches.get(batch.id, TENANT)


def read(jobs: Jobs, file_id: str | None) -> dict[str, dict[str, Any]]:
    """The records of an output or error file by custom_id; each id must be there once."""
    if file_id is None:
        return {}
    with open_store(jobs.settings).reader(Files(jobs).get(file_id, TENANT).path) as file:
        records = [json.loads(raw) for raw in file]
    found = {record["custom_id"]: record for record in records}
    assert len(found) == len(records), "a line was answered twice"
    return found


def submitted(jobs: Jobs) -> int:
    """How many jobs were ever written."""
    return int(jobs.client.hget(keys.TOTALS, "submitted") or 0)  # type: ignore[arg-type]


def ended(jobs: Jobs, batch: Batch) -> bool:
    """Whether a batch has ended."""
    return Batches(jobs).get(batch.id, TENANT).finished_at is not None
