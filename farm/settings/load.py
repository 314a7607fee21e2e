"""All settings at once: read from the environment, checked by name and against each other."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from farm.contracts import SAFE_NAME, model_name
from farm.errors import InvalidRequest, SettingsError, nearest
from farm.settings.access import ApiSettings, ClientSettings, FlowerSettings, LimitsSettings
from farm.settings.background import BatchesSettings, FilesSettings, WebhooksSettings
from farm.settings.generation import EngineSettings, ModelSettings, WorkerSettings
from farm.settings.operation import LocalSettings, LogsSettings, TelemetrySettings
from farm.settings.queue import BrokerSettings, KeeperSettings, LeaseSettings, RedisSettings

PREFIX = "FARM_"
# What Kubernetes injects for a Service called farm-<something>.
_SERVICE_LINK = re.compile(
    r"^FARM_(?!.*__)[A-Z0-9_]*?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP)(_[A-Z]+)?)?)$"
)

# What pydantic's complaints ask for, in words; all others are clear by themselves.
_WANTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "greater_than": "more than {gt:,.12g}",
    "greater_than_equal": "at least {ge:,.12g}",
    "less_than": "less than {lt:,.12g}",
    "less_than_equal": "at most {le:,.12g}",
}


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
    wanted = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("a valid ")
    if (words := _WANTED.get(first["type"])) is not None:
        wanted = words.format(**first.get("ctx", {}))
    return f"{name}: {value} is no good; give {wanted}"


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
