"""A server that comes back with an older file while the workers live on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from farm import keys
from farm.contracts import JobState
from farm.ledger.jobs import Jobs
from farm.local.server import EmbeddedServer
from farm.settings import load_settings
from tests.integration.ledger.farmhand import ENDED, Field, Hand, indices
from tests.integration.ledger.invariants import check


def makers(field: Field, job: str) -> list[str]:
    return [text for _, text in (field.jobs.pieces([(job, 0)])[0]).tokens]  # type: ignore[union-attr]


def settle(field: Field, hands: list[Hand], job: str) -> None:
    """Workers and keeper go on until the job has ended."""
    for _ in range(60):
        field.later(600)
        for hand in hands:
            for job_id, kept in hand.beat().items():
                if kept.word == "lost":
                    del hand.runs[job_id]
        field.keep()
        field.dispatch()
        for message in list(field.mail.values()):
            hands[0].claim(field.mail.pop(message.id))
        for hand in hands:
            for job_id in [job_id for job_id, run in hand.runs.items() if len(run.entries) >= 20]:
                hand.finish(job_id)
            for job_id in hand.runs:
                hand.runs[job_id].generate(5)
        if field.state(job) in ENDED:
            return
    raise AssertionError(f"{job} is {field.state(job)}")


def test_the_owner_fills_up_what_the_server_forgot(field: Field, raw: redis.Redis) -> None:
    """When the server lost the last tokens, their worker is asked for them and its job ends as if nothing had been."""
    [job] = field.submit()
    hand = field.worker()
    field.run(hand, job)
    hand.write(job, 3)
    saved = field.snapshot(raw)
    hand.write(job, 5)
    field.restore(raw, saved)
    hand.runs[job].generate(1)
    _, [kept] = hand.attempts.progress([hand.runs[job].advance(8)], 2)
    assert (kept.word, kept.tokens) == ("gap", 3)
    assert hand.beat()[job].tokens == 9
    assert hand.finish(job) is None
    assert field.view(job).token_ids == list(range(9))
    assert field.view(job).attempt == 1


def test_two_owners_of_one_attempt_number_do_not_mix(field: Field, raw: redis.Redis) -> None:
    """After a rewind a second worker may hold the same attempt number; only the latest claim writes."""
    [job] = field.submit()
    first, second = field.worker("barn"), field.worker("mill")
    saved = field.snapshot(raw)
    field.run(first, job)
    first.write(job, 4)
    field.restore(raw, saved)
    field.mail.clear()
    field.run(second, job)
    assert field.view(job).attempt == 1
    first.runs[job].generate(3)
    assert first.beat()[job].word == "lost"
    second.write(job, 2)
    assert set(makers(field, job)) == {second.runs[job].nonce}
    second.finish(job)
    assert field.view(job).state is JobState.SUCCEEDED


@pytest.mark.parametrize("moment", ["queued", "dispatched", "claimed", "half done", "moved"])
def test_jobs_end_whatever_moment_the_server_goes_back_to(field: Field, raw: redis.Redis, moment: str) -> None:
    """From any older state, with workers that know more than the server, the job ends with whole tokens."""
    moments = {}
    [job] = field.submit()
    barn, mill = field.worker("barn"), field.worker("mill")
    moments["queued"] = field.snapshot(raw)
    field.dispatch()
    moments["dispatched"] = field.snapshot(raw)
    field.run(barn, job)
    moments["claimed"] = field.snapshot(raw)
    barn.write(job, 6)
    moments["half done"] = field.snapshot(raw)
    field.later(10_001)
    mill.beat()
    field.keep()
    field.run(mill, job)
    moments["moved"] = field.snapshot(raw)
    mill.write(job, 2)
    field.restore(raw, moments[moment])
    check(field)
    settle(field, [mill, barn], job)
    assert field.state(job) == "succeeded"
    assert indices(field.client.lrange(keys.out(job), 0, -1)) == list(range(len(makers(field, job))))
    owners = makers(field, job)
    assert len(set(owners)) == sum(a != b for a, b in zip(owners, ["", *owners], strict=False)), "tokens are mixed"


@pytest.fixture
def old_file(tmp_path: Path) -> Iterator[tuple[EmbeddedServer, Path]]:
    """A server of one's own, that writes each command to its file at once."""
    server = EmbeddedServer(tmp_path / "live", appendfsync="always")
    server.start()
    yield server, tmp_path / "copy"
    server.stop()


def test_an_older_append_only_file_loses_no_job_that_it_holds(old_file: tuple[EmbeddedServer, Path]) -> None:
    """A server killed and started again from a copy of its file goes on with the workers it finds."""
    server, copy = old_file
    field = Field(Jobs(load_settings(redis={"url": server.url})))
    [job] = field.submit()
    hand = field.worker()
    field.run(hand, job)
    hand.write(job, 3)
    shutil.copytree(server.folder / "appendonlydir", copy)
    hand.write(job, 4)
    server.kill()
    shutil.rmtree(server.folder / "appendonlydir")
    shutil.copytree(copy, server.folder / "appendonlydir")
    server.start()
    assert field.view(job).token_ids == [0, 1, 2]
    settle(field, [hand], job)
    assert field.view(job).token_ids == list(range(len(makers(field, job))))
    assert field.view(job).attempt == 1
    check(field)
    field.client.close()
