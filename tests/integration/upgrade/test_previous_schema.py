"""What the previous schema's code left on the server is brought to its end by this one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import redis

from farm import keys, schema
from farm.contracts import JobState
from farm.ledger import dead
from farm.ledger.jobs import Jobs
from tests.conftest import wait_until
from tests.integration.conftest import StartWorker, submit, wait_for_all
from tests.integration.ledger.farmhand import Field
from tests.integration.ledger.invariants import check_dump
from tests.integration.upgrade.record import OLD

RECORDED = {1: Path(__file__).with_name("schema_1.json")}
# The recording lies in the past: what has ended must not be trimmed for its age.
NOW = {"LEASE__LEASE_S": 2, "LIMITS__RETENTION_S": 10**9}


def put_back(client: redis.Redis, recorded: dict[str, Any]) -> None:
    """Fill the server with what was recorded."""
    for key, value in recorded["keys"].items():
        holds = value["holds"]
        match value["type"]:
            case "hash":
                client.hset(key, mapping=holds)
            case "list":
                client.rpush(key, *holds)
            case "set":
                client.sadd(key, *holds)
            case "zset":
                client.zadd(key, dict(holds))
            case _:
                client.set(key, holds)


def counted_from_the_beginning(world: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """What the server holds, with the tally, which is newer than schema 1, as if it had counted what was before."""
    totals = before[keys.TOTALS]["holds"]
    usage = Counter(dict.fromkeys(("prompt_tokens", "completion_tokens", "resumed_tokens"), 0))
    for key, value in before.items():
        if key.startswith(f"{keys.PREFIX}usage:"):
            usage.update({name: int(count) for name, count in value["holds"].items() if name in usage})
    kinds = {"prompt": "prompt_tokens", "completion": "completion_tokens", "resumed": "resumed_tokens"}
    older = {f"{name}:before": count for name, count in totals.items() if ":" not in name}
    older |= {f"{kind}:before": usage[name] for kind, name in kinds.items()}
    return world | {f"{keys.PREFIX}tally": world.get(f"{keys.PREFIX}tally", {}) | older}


def test_the_previous_schema_is_recorded() -> None:
    """A schema's number is raised only once the server full of jobs of the one before is recorded."""
    assert sorted(RECORDED) == list(range(schema.FIRST, schema.WRITES))


@pytest.mark.parametrize("number", sorted(RECORDED))
def test_jobs_and_messages_of_the_previous_schema_end(
    jobs: Jobs, client: redis.Redis, start_worker: StartWorker, number: int
) -> None:
    """Queued, waiting, dispatched, running, foreign: each is answered once, whole and by one model; what had ended
    reads as before, and what was dead can be retried."""
    recorded = json.loads(RECORDED[number].read_text(encoding="utf-8"))
    put_back(client, recorded)
    what = recorded["jobs"]
    [ended] = [job_id for job_id, purpose in what.items() if purpose == "succeeded"]
    [given_up] = [job_id for job_id, purpose in what.items() if purpose == "dead"]
    old = jobs.view(ended)
    assert (old.state, old.text) == (JobState.SUCCEEDED, OLD * 12)
    assert jobs.view(given_up).state is JobState.DEAD
    start_worker("new", **NOW)
    [answer] = dead.retry(jobs, [given_up])
    assert answer.is_done
    wait_until(lambda: all(jobs.views(list(what))), why="foreign messages to be adopted")
    views = {view.id: view for view in wait_for_all(jobs, list(what))}
    assert {view.state for view in views.values()} == {JobState.SUCCEEDED}
    assert jobs.view(ended) == old
    for job_id, purpose in what.items():
        if job_id != ended:
            assert len(views[job_id].token_ids) == 12, purpose
            assert OLD not in views[job_id].text, f"{purpose}: tokens of a revision that nobody noted"
    assert client.get(keys.SCHEMA) == str(schema.WRITES)
    field = Field(jobs)
    field.keeper.tidy()
    check_dump(counted_from_the_beginning(field.dump(but=("events",)), recorded["keys"]))


def test_new_jobs_are_answered_beside_them(jobs: Jobs, client: redis.Redis, start_worker: StartWorker) -> None:
    """A producer of this version shares a ledger that the previous one filled."""
    put_back(client, json.loads(RECORDED[schema.WRITES - 1].read_text(encoding="utf-8")))
    ids = submit(jobs, 3, max_tokens=4)
    start_worker("new", **NOW)
    assert {view.state for view in wait_for_all(jobs, ids)} == {JobState.SUCCEEDED}
