"""How the farm is used: clients, limits of tenants, the REST API, Flower."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from farm.settings.base import Group


class ClientSettings(Group):
    tenant: str = "default"
    """Whose jobs these are; tenants share the farm by weight."""
    reread_s: float = Field(2.0, gt=0)
    """How often a waiter reads its jobs again in case it missed a notification."""
    outage_s: float = Field(60.0, gt=0)
    """How long a waiter bears a server that does not answer before it raises ServerUnreachable. The job runs on."""


class LimitsSettings(Group):
    retention_s: float = Field(86400.0, gt=0)
    """How long a finished job can be read."""
    max_finished: int = Field(1_000_000, ge=1)
    """How many finished jobs are kept. Beyond it the oldest of the tenant that has most go first."""
    max_finished_bytes: int = Field(2 << 30, ge=1 << 20)
    """How many bytes of requests and results of finished jobs are kept; beyond it likewise, of who has most bytes."""
    memory_share: float = Field(0.8, gt=0, le=1)
    """Share of the server's maxmemory above which new jobs are refused: Celery needs the rest to deliver the others."""
    high_lead_tokens: int = Field(20_000, ge=0)
    """How far priority high lets a tenant run ahead of its fair share; beyond that its jobs count as normal."""
    requests_per_s: float | None = Field(None, gt=0, le=1e6)
    """HTTP requests per second of a tenant without a limit of its own; twice as many may come at once. Unset: any."""
    queued_jobs: int | None = Field(None, ge=1)
    """Jobs that such a tenant may have queued. Unset: any number, as on a farm without keys."""
    queued_tokens: int | None = Field(None, ge=1)
    """Tokens, prompts and max_tokens, that such a tenant may have queued. Unset: any number."""
    max_queued_jobs: int | None = Field(None, ge=1)
    """Jobs that all tenants together may have queued. Unset: as many as fit in the server's memory."""
    usage_days: int = Field(400, ge=1, le=36_500)
    """How many days the tokens and jobs of each tenant and day are kept; a year and a month to compare with."""


class FlowerSettings(Group):
    host: str = "127.0.0.1"
    """Where Flower listens."""
    port: int = Field(5555, ge=0, le=65535)
    """Flower's port; ``farm up`` takes a free one when it is taken."""
    read_only: bool = False
    """Whether its pages and its API refuse every change: revoking tasks, ending workers, sending tasks. Without a
    password that is so anyway."""
    max_tasks: int = Field(10_000, ge=100)
    """How many tasks Flower remembers, about 6 kB each."""
    max_workers: int = Field(1_000, ge=1)
    """How many workers Flower remembers, those that are gone included."""
    db: Path | None = None
    """The file in which Flower keeps what it has seen, for its next start. Unset: flower.db in
    FARM_LOCAL__STATE_DIR."""
    save_s: float = Field(30.0, ge=1)
    """How often it is written, besides at the end: as much is lost when Flower is killed."""


class ApiSettings(Group):
    host: str = "127.0.0.1"
    """Where the REST API listens. Beyond this machine every request needs a key."""
    port: int = Field(8000, ge=0, le=65535)
    """The API's port; ``farm up`` takes a free one when it is taken."""
    processes: int = Field(1, ge=1, le=64)
    """Processes that answer on the one port. Each takes a core when it is busy."""
    keys: Literal["auto", "required", "local"] = "auto"
    """required: no key, no answer. local: without a key a request is the tenant FARM_CLIENT__TENANT's, which only an
    API on loopback may do. auto: local for a local farm on loopback, else required."""
    max_body_bytes: int = Field(1 << 20, ge=1024, le=1 << 30)
    """The largest request body."""
    max_head_bytes: int = Field(32 << 10, ge=1024, le=1 << 20)
    """The largest request line with its headers."""
    request_s: float = Field(30.0, gt=0)
    """How long a client may take to send a whole request, or to take what was sent to it."""
    max_streams: int = Field(4096, ge=1)
    """Event streams and long polls that one process holds open at once."""
    heartbeat_s: float = Field(15.0, gt=0)
    """A stream that has nothing to say says so this often, so that proxies keep it open."""
    stop_s: float = Field(5.0, gt=0)
    """How long requests may go on after SIGTERM. Streams and long polls end at once."""
