"""What the ledger leaves on a server is what farm/keys.py says."""

from __future__ import annotations

import re

from farm import keys
from farm.batch_contracts import COMPLETIONS, BatchRequest
from farm.ledger.batches import Batches
from farm.ledger.driving import Driving, Progress
from farm.ledger.files import Files
from farm.ledger.keyring import Keyring
from farm.ledger.tenants import Tenants
from farm.ledger.trash import Trash
from farm.ledger.upkeep import Upkeep
from farm.ledger.webhooks import WebhookSecrets
from tests.integration.ledger.farmhand import Field


def test_every_key_on_the_server_is_declared_with_its_type(field: Field) -> None:
    """After jobs took every path there is, no key is on the server that the list does not have, or of another type."""
    ring = Keyring(field.jobs)
    ring.find(ring.create("ann", weight=2, limits={"requests_per_s": 0.01}).secret)
    hand = field.worker(capacity=8)
    for _ in range(3):
        [poison] = field.submit(tenant="ann", deadline_s=900)
        for _ in range(3):
            field.run(hand, poison)
            hand.release("lost", "engine_lost", [poison])
    running, retried, cancelled = field.submit(3, deadline_s=900, plain="{}")
    for job in (running, retried, cancelled):
        field.run(hand, job)
        hand.write(job, 1)
    hand.release("retry", "busy", [retried], wait_s=500)
    field.jobs.cancel([cancelled])
    field.later(60_000, silent=True)
    field.keep()
    field.submit(30, tenant="ben")
    hand.beat()
    field.dispatch()
    WebhookSecrets(field.jobs).of("ann")
    field.jobs.cancel(field.submit(webhook_url="https://example.com/"))
    files, batches, driving = Files(field.jobs), Batches(field.jobs), Driving(field.jobs, "barn")
    Trash(field.jobs).announce("files/0")
    made = files.add("file-1", "ann", "files/1", filename="in.jsonl", purpose="batch", size=9)
    files.add("file-2", "ann", "files/2", filename="more.jsonl", purpose="batch", size=9)
    files.drop("file-2", "ann")
    batches.add(BatchRequest(input_file_id=made.id, endpoint=COMPLETIONS), "ann")
    drive = driving.take()
    assert drive is not None
    driving.advance(drive, Progress(total=1), ["part"], "in_progress")
    field.jobs.scripts.call("mark")
    hand.attempts.claim("nobody", 1)
    field.client.config_set("maxmemory", int(field.client.info("memory")["used_memory"] / 0.9))
    Upkeep(field.jobs).watch_memory()
    field.client.config_set("maxmemory", 0)
    Tenants(field.jobs).take("ann")
    shapes = {re.compile(keys.PREFIX + re.sub(r"<[a-z]+>", "[^:]+", key.name) + "$"): key for key in keys.KEYS}
    seen = set()
    for name in field.client.scan_iter():
        found = [key for shape, key in shapes.items() if shape.match(name)]
        assert len(found) == 1, f"{name} is not in the list"
        assert field.client.type(name) == found[0].type, name
        seen.add(found[0].name)
    assert seen >= {key.name for key in keys.KEYS} - UNSEEN


# Keys of other parts of the farm or of earlier versions, or gone the moment they are used.
UNSEEN = {"wake", "models", "finished", "finished_bytes"}
