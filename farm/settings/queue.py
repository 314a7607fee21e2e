"""The server, the broker, and how jobs are leased and kept."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr, field_validator

from farm.settings.base import Group, names


class RedisSettings(Group):
    url: SecretStr | None = None
    """The ledger's server: redis://, rediss:// or unix://, or whichever its Sentinels call the master:
    redis+sentinel://host:26379,host:26379/service (docs/redis.md). Unset: the local farm that is running."""
    timeout_s: float = Field(2.0, gt=0, le=60)
    """How long one call may take in all: connecting, asking and, after a broken connection, asking again. Short, so
    that a stalled server is noticed before a lease ends."""
    retries: int = Field(1, ge=0, le=10)
    """How often a command is sent again after a broken connection. Every script may safely run twice."""
    durability: Literal["none", "fsync"] = "none"
    """fsync: submit and finish return after the server's append-only file is on disk (wants appendfsync always)."""
    wait_replicas: int = Field(0, ge=0, le=100)
    """How many replicas must have a write before submit and finish return, so that a failover loses nothing. 0: none,
    and a failover may lose what was accepted in the moment before."""

    @property
    def is_durable(self) -> bool:
        """Whether submit and finish wait for more than the server's answer."""
        return self.durability == "fsync" or self.wait_replicas > 0


class BrokerSettings(Group):
    url: SecretStr | None = None
    """Celery's server; the ledger's own unless set."""
    visibility_timeout_s: float = Field(3600, ge=60)
    """When kombu delivers an unacknowledged message again. Recovery does not wait for it: leases do that."""
    foreign_queues: list[str] = Field(["farm.default", "celery"])
    """Queues where other Celery apps may leave farm.generate. "celery" is where send_task goes unless told otherwise;
    leave it out on a server that other Celery apps use too, since their tasks are unknown here. In the environment:
    names with commas between them."""

    @field_validator("foreign_queues", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return names(value)


class LeaseSettings(Group):
    lease_s: float = Field(10.0, gt=0)
    """How long a job stays with a worker that falls silent. Ten flushes may be lost before it moves."""
    flush_s: float = Field(0.1, gt=0)
    """How long a token may wait until it is written: the engine gathers some, then the worker writes all jobs' tokens
    and renews their leases with one call. What a kill costs at the most."""


class KeeperSettings(Group):
    tick_s: float = Field(0.25, gt=0)
    """How often the leading keeper looks when nobody wakes it."""
    lock_s: float = Field(1.0, gt=0)
    """How long a leader that fell silent keeps the lead."""
    debounce_s: float = Field(0.02, ge=0)
    """Least time between two looks, so that a burst of submissions is one look."""
    unclaimed_s: float = Field(2.0, gt=0)
    """When a dispatched message that nobody claimed is published again; doubles each time."""
    liveness_s: float = Field(1.5, gt=0)
    """A worker silent for longer gets no new jobs."""
    stall_s: float = Field(1.5, gt=0)
    """After the server was silent for this long, no lease ends before workers had one lease's time to renew."""
    margin: int = Field(2, ge=0, le=64)
    """Messages kept waiting per live worker, so that a freed slot finds work at once."""
    max_strikes: int = Field(3, ge=1)
    """Losses without a new token after which a job is dead."""
    max_losses: int = Field(10, ge=1)
    """Losses in a row with under 16 new tokens each after which a job is dead."""
    max_retries: int = Field(5, ge=0)
    """How often a retryable error is retried before the job fails."""
    retry_base_s: float = Field(1.0, gt=0)
    """The first retry waits up to this long, each further one up to twice as long."""
    retry_cap_s: float = Field(60.0, gt=0)
    """The longest wait before a retry."""
