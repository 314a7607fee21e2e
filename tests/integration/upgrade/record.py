"""Record a server full of jobs, as this code writes them: ``python -m tests.integration.upgrade.record``.

Run it before the schema's number is raised, and keep the file: code of the next schema must bring all of it to its end.
It prints one JSON object: each key with its type and what it holds, Celery's lists too, and what the jobs are for.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from celery import Celery

from farm import keys
from farm.broker import make_app
from farm.ledger.attempts import Attempts, Claim
from farm.ledger.jobs import Jobs
from farm.ledger.records import ModelFacts, entry
from farm.ledger.upkeep import Upkeep
from farm.local.server import EmbeddedServer
from farm.settings import load_settings
from tests.integration.ledger.farmhand import Field, Hand
from workers import tasks
from workers.host import Host
from workers.keeper import Keeper

MODEL = "tiny-bloom"
FACTS = ModelFacts(MODEL, 2048, 512, "0123456789abcdef", "")
LOCKS_MS = 10_000
OLD = " old"
"""The text of every token that the recorded workers generated."""


def main() -> None:
    """Fill a server of its own and print what it holds."""
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer(Path(folder))
        server.start()
        try:
            print(json.dumps(record(server.url), indent=1, sort_keys=True))
        finally:
            server.stop()


def record(url: str) -> dict[str, Any]:
    """Jobs queued, waiting for a retry, dispatched, running and ended, and two of a foreign app."""
    settings = load_settings(redis={"url": url}, model={"id": MODEL})
    jobs = Jobs(settings)
    field = Field(jobs)
    app = make_app(settings)
    tasks.register(app, Host(settings, app))
    keeper = Keeper(settings, app, Upkeep(jobs))
    attempts = Attempts(jobs, "old.00000001")
    attempts.register("old", MODEL, 6, "model", FACTS)
    hand = Hand("old", attempts, 6)
    what: dict[str, str] = {}

    def add(purpose: str, **values: Any) -> str:
        [job_id] = field.submit(prompt=f"a prompt that is {purpose}", max_tokens=12, **values)
        what[job_id] = purpose
        return job_id

    def run(job_id: str, tokens: int) -> None:
        [message] = field.dispatch()
        assert message.id == job_id
        assert isinstance(hand.claim(message), Claim)
        hand.runs[job_id].entries += [entry(1, OLD, None, None)] * tokens
        hand.beat()

    run(add("succeeded"), 12)
    [ended] = hand.runs
    hand.finish(ended)
    run(job := add("retried", seed=7), 5)
    hand.release("retry", "engine_error", [job], wait_s=5)
    run(job := add("dead"), 0)
    for _ in range(settings.keeper.max_strikes):
        hand.release("lost", "engine_lost", [job])
        for message in field.dispatch():
            hand.claim(message)
    run(add("running with tokens", priority="high", temperature=0.7), 5)
    run(add("running without tokens"), 0)
    add("dispatched", stop=[" never"], logprobs=2)
    keeper._publish(field.dispatch())
    attempts.progress([run.advance() for run in hand.runs.values()], 0)
    add("queued", tenant="ann")
    add("queued at low priority", priority="low", metadata={"order": "7"})
    add("queued with a key", job_id="5f0c9a52-2f9b-5b7e-8f2d-3f6f2f0f4c11")
    with Celery("foreign", broker=url, backend=url, set_as_current=False) as foreign:
        for purpose, queue in (("foreign", "farm.default"), ("foreign at a model", f"farm.{MODEL}")):
            sent = foreign.send_task(
                "farm.generate", kwargs={"prompt": f"a prompt that is {purpose}", "max_tokens": 12}, queue=queue
            )
            what[sent.id] = purpose
    dump = _dump(jobs)
    assert f"{keys.PREFIX}job:{ended}" in dump
    return {"jobs": what, "keys": dump}


def _dump(jobs: Jobs) -> dict[str, Any]:
    """All keys but the announcements, which nobody reads later, and locks, which are gone by then."""
    client, found = jobs.client, {}
    for key in sorted(client.scan_iter()):
        kind = client.type(key)
        reads: dict[str, Any] = {
            "hash": client.hgetall,
            "list": lambda key: client.lrange(key, 0, -1),
            "set": client.smembers,
            "zset": lambda key: client.zrange(key, 0, -1, withscores=True),
            "string": client.get,
        }
        if kind in reads and not 0 <= client.pttl(key) < LOCKS_MS:
            value = reads[kind](key)
            found[key] = {"type": kind, "holds": sorted(value) if isinstance(value, set) else value}
    return found


if __name__ == "__main__":
    main()
