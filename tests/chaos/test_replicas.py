"""What a failover may lose, and what waiting for a replica closes: servers without Sentinels, moved by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from farm import Farm, JobNotFound, ServerUnreachable
from farm.ledger.jobs import Jobs
from farm.settings import Settings, load_settings
from tests.chaos.replicas import Service, client_of, replicated
from tests.integration.ledger.farmhand import Field

QUICK_S = 0.6


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A master and its replica, for all tests that leave them as they are."""
    with replicated(tmp_path_factory.mktemp("pair")) as service:
        yield service


@pytest.fixture
def service(pair: Service) -> Iterator[Service]:
    """The two, emptied and linked."""
    with client_of(pair.master) as client:
        client.flushall()
    yield pair
    pair.link.heal()


def waiting(service: Service, **more: object) -> Settings:
    """Settings of a farm whose writes wait for a replica."""
    return load_settings(redis={"url": service.master.url, "wait_replicas": 1, "timeout_s": QUICK_S, **more})


@pytest.mark.parametrize("durability", ["none", "fsync"])
def test_what_submit_acknowledged_is_at_the_replica(service: Service, durability: str) -> None:
    """With FARM_REDIS__WAIT_REPLICAS=1 a submission returns when the replica has it, also if the disk must have it."""
    with Farm(waiting(service, durability=durability)) as farm, client_of(service.replica) as replica:
        for n in range(20):
            job = farm.submit(f"p{n}")
            assert replica.hget(f"{{farm}}:job:{job.id}", "state") == "queued"


def test_without_the_replica_a_submission_is_refused_and_may_be_repeated(service: Service) -> None:
    """A replica that lags costs the caller an error that may be retried, in time; a repetition with the same key is
    refused as well until the replica has the first."""
    with Farm(waiting(service)) as farm, client_of(service.replica) as replica:
        farm.submit("warm")
        service.link.stall()
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(ServerUnreachable, match="0 of 1 replicas") as error:
                farm.submit("hello", idempotency_key="k")
            assert error.value.retryable
            assert time.monotonic() - began < 2 * QUICK_S
            farm.ledger.client.connection_pool.disconnect()  # else WAIT speaks of the first call, too
        service.link.resume()
        job = farm.submit("hello", idempotency_key="k")
        assert replica.hget(f"{{farm}}:job:{job.id}", "state") == "queued"
        assert farm.ledger.client.hget("{farm}:totals", "submitted") == "2"


def test_an_end_waits_for_the_replica_too(service: Service) -> None:
    """finish is not acknowledged before the replica has it, and a repetition has the same answer."""
    field = Field(Jobs(waiting(service)))
    [job] = field.submit()
    hand = field.worker()
    field.run(hand, job)
    run = hand.runs[job]
    service.link.stall()
    with pytest.raises(ServerUnreachable, match="0 of 1 replicas"):
        hand.finish(job, tokens=2)
    service.link.resume()
    hand.runs[job] = run
    assert hand.finish(job) is None
    with client_of(service.replica) as replica:
        assert replica.hget(f"{{farm}}:job:{job}", "state") == "succeeded"
    field.client.close()


def test_a_failover_loses_what_no_replica_had(tmp_path: Path) -> None:
    """By default what a master acknowledged just before it died may be unknown to its successor; with
    FARM_REDIS__WAIT_REPLICAS=1 that was refused instead."""
    with replicated(tmp_path) as service:
        both = load_settings(redis={"url": service.master.url, "timeout_s": QUICK_S})
        with Farm(both) as hasty, Farm(waiting(service)) as patient:
            kept = [hasty.submit("kept"), patient.submit("kept")]
            service.link.stall()
            lost = hasty.submit("lost")
            with pytest.raises(ServerUnreachable):
                patient.submit("refused")
        service.master.kill()
        service.link.cut()  # and what was on its way
        with client_of(service.replica) as replica:
            replica.replicaof("NO", "ONE")
        with Farm(load_settings(redis={"url": service.replica.url})) as farm:
            assert [farm.job(job.id).status().state for job in kept] == ["queued", "queued"]
            with pytest.raises(JobNotFound):
                farm.job(lost.id).status()
