"""Every setting of the farm: frozen groups, read from ``FARM_<GROUP>__<NAME>`` when asked for, never at import.

A name that no group has is an error that names the nearest one. Times are in seconds, sizes in bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from farm.contracts import SAFE_NAME, model_name
from farm.errors import InvalidRequest, SettingsError, nearest

PREFIX = "FARM_"
# What Kubernetes injects for a Service called farm-<something>.
_SERVICE_LINK = re.compile(
    r"^FARM_(?!.*__)[A-Z0-9_]*?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP)(_[A-Z]+)?)?)$"
)


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def _names(value: object) -> object:
    """Names with commas between them as a list; anything else as it is."""
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


class RedisSettings(_Group):
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


class BrokerSettings(_Group):
    url: SecretStr | None = None
    """Celery's server; the ledger's own unless set."""
    visibility_timeout_s: float = Field(3600, ge=60)
    """When kombu delivers an unacknowledged message again. Recovery does not wait for it: leases do that."""
    foreign_queues: list[str] = ["farm.default", "celery"]
    """Queues where other Celery apps may leave farm.generate. "celery" is where send_task goes unless told otherwise;
    leave it out on a server that other Celery apps use too, since their tasks are unknown here. In the environment:
    names with commas between them."""

    @field_validator("foreign_queues", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return _names(value)


class LeaseSettings(_Group):
    lease_s: float = Field(10.0, gt=0)
    """How long a job stays with a worker that falls silent. Ten flushes may be lost before it moves."""
    flush_s: float = Field(0.1, gt=0)
    """How long a token may wait until it is written: the engine gathers some, then the worker writes all jobs' tokens
    and renews their leases with one call. What a kill costs at the most."""


class KeeperSettings(_Group):
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


class ModelSettings(_Group):
    id: str = "tiny-bloom"
    """A hub id, a folder with a Bloom checkpoint, or tiny-bloom, which comes with the farm."""
    revision: str | None = None
    """The hub's branch, tag or commit."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: float32 on a CPU, bfloat16 on a GPU."""

    @property
    def name(self) -> str:
        """The model's short name, as in the queue ``farm.<name>``."""
        return model_name(self.id)


class EngineSettings(_Group):
    kind: Literal["bloom", "synthetic"] = "bloom"
    """synthetic makes tokens up without a model, to measure or test the farm around it."""
    max_slots: int = Field(32, ge=1, le=1024)
    """How many sequences run at once."""
    max_context: int = Field(2048, ge=8)
    """Prompt and completion tokens of one sequence at the most. Bloom was trained on 2,048."""
    kv_bytes: int | None = Field(None, ge=1 << 16)
    """Memory for keys and values. Unset: what all slots need, up to a quarter of the free memory."""
    kv_layout: Literal["auto", "contiguous", "paged"] = "auto"
    """How keys and values lie: in one piece per sequence, best on CPUs, or in pages of 16 tokens, best on GPUs."""
    prefix_caching: bool = True
    """Compute equal beginnings of one tenant's prompts once."""
    prefill_budget: int = Field(128, ge=1)
    """Prompt tokens computed beside the running sequences in one step."""
    prefill_slowdown: float = Field(2.5, ge=1)
    """How many times as long as without it a step may take while it computes part of a longer prompt than the budget;
    1 puts running sequences first, a large number the prompts."""
    devices: list[str] = []
    """Where the model's stages run, first to last, with commas between them: "cpu,cpu" is two stages that share the
    threads. Unset: all GPUs of the machine, or one stage on the CPU."""
    native: Literal["auto", "off"] = "auto"
    """auto: the C++ kernels are compiled at the first start if there is a compiler, and used if they pass a test."""
    quantization: Literal["int8"] | None = None
    """int8: weights of 8 bits with a scale per row, and likewise what they are multiplied with. Faster, less exact."""
    threads: int | None = Field(None, ge=1, le=1024)
    """Threads of the forward pass. Unset: the cores that this process may use."""
    watchdog_s: float = Field(60.0, gt=0)
    """An engine that has work and finishes no step for this long is killed and started again."""
    load_timeout_s: float = Field(1800.0, gt=0)
    """An engine that has not loaded its model by then is killed and started again."""
    max_deaths: int = Field(5, ge=1)
    """After so many deaths in a row, without a job's token in between, the worker calls its engine failing. More than
    KEEPER__MAX_STRIKES: one prompt that kills engines is no engine that is broken."""
    respawn_cap_s: float = Field(30.0, gt=0)
    """The longest wait before a dead engine is started again. The first is a quarter of a second, each further one
    twice as long."""
    synthetic_step_s: float = Field(0.0, ge=0)
    """How long a step of the synthetic engine takes."""
    synthetic_faults: list[str] = []
    """What the synthetic engine does to prompts that hold a word, for tests: WORD=die@K, WORD=die+K or WORD=fail*N, as
    ``workers.engine.faults`` explains, with commas between them."""

    @field_validator("devices", "synthetic_faults", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return _names(value)


class ClientSettings(_Group):
    tenant: str = "default"
    """Whose jobs these are; tenants share the farm by weight."""
    reread_s: float = Field(2.0, gt=0)
    """How often a waiter reads its jobs again in case it missed a notification."""
    outage_s: float = Field(60.0, gt=0)
    """How long a waiter bears a server that does not answer before it raises ServerUnreachable. The job runs on."""


class LimitsSettings(_Group):
    retention_s: float = Field(86400.0, gt=0)
    """How long a finished job can be read."""
    max_finished: int = Field(1_000_000, ge=1)
    """How many finished jobs are kept; the oldest go first."""
    max_finished_bytes: int = Field(2 << 30, ge=1 << 20)
    """How many bytes of requests and results of finished jobs are kept; the oldest go first."""
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


class FlowerSettings(_Group):
    host: str = "127.0.0.1"
    """Where Flower listens."""
    port: int = Field(5555, ge=0, le=65535)
    """Flower's port; ``farm up`` takes a free one when it is taken."""
    max_tasks: int = Field(10_000, ge=100)
    """How many tasks Flower remembers."""


class ApiSettings(_Group):
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


class FilesSettings(_Group):
    url: SecretStr | None = None
    """Where uploaded files and the results of batches lie: a folder, or a URL that fsspec knows, as s3://bucket/farm.
    API and system workers must be told the same. Unset: the folder ``files`` of FARM_LOCAL__STATE_DIR."""
    max_bytes: int = Field(200 << 20, ge=1 << 10)
    """The largest file."""
    tenant_bytes: int = Field(20 << 30, ge=1 << 20)
    """How much one tenant may keep; a file counts for at least 4 KiB. Results of batches are always kept."""
    retention_s: float = Field(30 * 86400.0, ge=1)
    """How long a file is kept that does not say for itself, and how long a batch can be read after its end."""


class BatchesSettings(_Group):
    max_lines: int = Field(50_000, ge=1)
    """The most lines of a batch."""
    open_batches: int = Field(100, ge=1)
    """How many batches that have not ended a tenant may have."""
    active: int = Field(8, ge=1, le=256)
    """How many batches a system worker drives at once; with more, each gets its turn."""
    turn_s: float = Field(15.0, gt=0)
    """How long a batch is driven while others wait for a turn. Its jobs run on meanwhile."""
    window: int = Field(1_000, ge=1, le=100_000)
    """The most jobs of one batch that wait or run; what is done with leaves the server."""
    flush_s: float = Field(10.0, gt=0)
    """How often results are written to the file store, a file each time; sooner when there are many."""


class WebhooksSettings(_Group):
    allow: list[str] = []
    """Networks that may be called though they are private, and without TLS, with commas between them: 10.1.0.0/16.
    What a tenant names elsewhere must be https and in the open internet."""
    timeout_s: float = Field(10.0, gt=0, le=60)
    """How long a receiver may take to answer, from the look-up of its name on."""
    give_up_s: float = Field(86400.0, gt=0)
    """How long after a job's end its webhook is tried; never beyond the job's retention."""
    retry_base_s: float = Field(5.0, gt=0)
    """The wait before the second try; each further one is three times as long."""
    retry_cap_s: float = Field(6 * 3600.0, gt=0)
    """The longest wait between two tries."""
    concurrency: int = Field(32, ge=1, le=1024)
    """How many receivers a system worker calls at once. One receiver gets an eighth of them, one tenant a quarter."""

    @field_validator("allow", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return _names(value)

    @field_validator("allow")
    @classmethod
    def _are_networks(cls, value: list[str]) -> list[str]:
        for text in value:
            try:
                ip_network(text)
            except ValueError:
                raise ValueError("networks as 10.1.0.0/16 or fd00::/8, with no bit set behind the prefix") from None
        return value

    @property
    def allowed(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks in ``allow``."""
        return tuple(ip_network(text) for text in self.allow)


class LocalSettings(_Group):
    state_dir: Path = Path("~/.local/state/farm")
    """Where ``farm up`` keeps data, logs and addresses."""

    @property
    def folder(self) -> Path:
        """The state folder with ``~`` resolved."""
        return self.state_dir.expanduser()


class LogsSettings(_Group):
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """INFO says one line per job, DEBUG one per step."""
    format: Literal["auto", "json", "text"] = "auto"
    """auto: text on a terminal, JSON elsewhere."""


class TelemetrySettings(_Group):
    host: str = "127.0.0.1"
    """Where a worker answers Prometheus."""
    port: int | None = Field(None, ge=1, le=65535)
    """The port of a worker's /metrics. Unset: none. Workers of one machine need one each."""


class WorkerSettings(_Group):
    name: str | None = None
    """The worker's name, the same after a restart and used by no other. Unset: the host's name and process id."""
    role: Literal["model", "system"] = "model"
    """model generates; system has no engine: it keeps queues moving, drives batches and calls webhooks."""
    heartbeat_file: Path | None = None
    """Touched while steps progress; a liveness probe reads its age."""
    drain_s: float = Field(4.0, gt=0)
    """How long a terminated worker may take to hand its jobs back."""


class Settings(BaseSettings):
    """All groups. ``load_settings`` builds it; pass it on rather than reading the environment again."""

    model_config = SettingsConfigDict(
        frozen=True, env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", case_sensitive=False
    )

    redis: RedisSettings = RedisSettings()
    broker: BrokerSettings = BrokerSettings()
    lease: LeaseSettings = LeaseSettings()
    keeper: KeeperSettings = KeeperSettings()
    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    worker: WorkerSettings = WorkerSettings()
    client: ClientSettings = ClientSettings()
    limits: LimitsSettings = LimitsSettings()
    api: ApiSettings = ApiSettings()
    flower: FlowerSettings = FlowerSettings()
    files: FilesSettings = FilesSettings()
    batches: BatchesSettings = BatchesSettings()
    webhooks: WebhooksSettings = WebhooksSettings()
    local: LocalSettings = LocalSettings()
    logs: LogsSettings = LogsSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        keeper, lease = self.keeper, self.lease
        _require(10 * lease.flush_s < lease.lease_s, "FARM_LEASE__LEASE_S must exceed ten times FARM_LEASE__FLUSH_S")
        _require(
            keeper.lock_s + keeper.tick_s < keeper.stall_s,
            "FARM_KEEPER__STALL_S must exceed FARM_KEEPER__LOCK_S + FARM_KEEPER__TICK_S",
        )
        _require(keeper.liveness_s < keeper.unclaimed_s, "FARM_KEEPER__UNCLAIMED_S must exceed FARM_KEEPER__LIVENESS_S")
        _require(
            bool(SAFE_NAME.match(self.client.tenant)), "FARM_CLIENT__TENANT: use letters, digits, '.', '_' and '-'"
        )
        _require(
            self.engine.kind == "synthetic" or not self.engine.synthetic_faults,
            "FARM_ENGINE__SYNTHETIC_FAULTS is for FARM_ENGINE__KIND=synthetic alone",
        )
        try:
            model_name(self.model.id)
        except InvalidRequest as error:
            raise ValueError(f"FARM_MODEL__ID: {error.problem}") from None
        return self


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(rule)


def load_settings(environ: Mapping[str, str] | None = None, **groups: Any) -> Settings:
    """Read the environment, or ``environ`` in its place; ``groups`` override it, as ``redis={"url": …}``.

    Raises SettingsError for a name that no group has, a value out of range, or values that contradict each other.
    """
    environ = os.environ if environ is None else environ
    check_names(environ)
    try:
        return Settings(_env_prefix="NOT_READ_", **_overridden(_grouped(environ), groups))
    except ValidationError as error:
        raise SettingsError(_problem(error)) from None


def _grouped(environ: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The settings in a mapping, as ``{"redis": {"url": …}}``."""
    known, found = set(setting_names()), dict[str, dict[str, Any]]()
    for name, value in environ.items():
        if name.upper() in known:
            group, _, field = name.lower().removeprefix(PREFIX.lower()).partition("__")
            found.setdefault(group, {})[field] = value
    return found


def _overridden(found: dict[str, dict[str, Any]], groups: Mapping[str, Any]) -> dict[str, Any]:
    return {**found, **{name: {**found.get(name, {}), **dict(group)} for name, group in groups.items()}}


def _problem(error: ValidationError) -> str:
    """Pydantic's first complaint, by the setting's name; the values of settings that may hold a password stay out."""
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return first["msg"].removeprefix("Value error, ")
    name = PREFIX + "__".join(str(part).upper() for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{name} is not a setting{nearest(name, setting_names())}"
    value = "its value" if name.endswith("__URL") else repr(first["input"])
    wanted = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ").split(", unable")[0]
    return f"{name}: {value} is no good; give {wanted.removeprefix('a valid ')}"


def setting_names() -> list[str]:
    """All names that the environment may set, as ``FARM_REDIS__URL``."""
    return [
        f"{PREFIX}{group}__{name}".upper()
        for group, info in Settings.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
        for name in info.annotation.model_fields
    ]


def check_names(environ: Mapping[str, str]) -> None:
    """Raise SettingsError for a ``FARM_…`` name that is neither a setting nor a Kubernetes service link."""
    known = set(setting_names())
    for name in environ:
        if name.upper().startswith(PREFIX) and name.upper() not in known and not _SERVICE_LINK.match(name):
            raise SettingsError(f"{name} is not a setting{nearest(name.upper(), known)}")
