"""The REST API as ``farm api`` and ``farm up`` start it: whether it needs keys, who may reach it, what it needs."""

from __future__ import annotations

import importlib.util

from farm.errors import SettingsError
from farm.listening import is_loopback, listen
from farm.local.environ import with_values
from farm.settings import ApiSettings, Settings

NEEDS = ("fastapi", "uvicorn", "uvloop", "httptools", "orjson", "fastapi_offline", "prometheus_client")


def with_keys(settings: Settings) -> Settings:
    """The settings with ``api.keys`` decided. Ask before a server is discovered: one that is named is not local."""
    if settings.api.keys != "auto":
        return settings
    is_local = settings.redis.url is None and is_loopback(settings.api.host)
    return with_values(settings, api={"keys": "local" if is_local else "required"})


def check_exposure(settings: ApiSettings) -> None:
    """Raise SettingsError for an API without keys that other machines could reach."""
    if settings.keys == "local" and not is_loopback(settings.host):
        raise SettingsError(
            f"FARM_API__KEYS=local on {settings.host} would serve everyone who reaches this machine: "
            "listen on 127.0.0.1, or set it to required and make keys with: farm keys create"
        )


def check_start(settings: ApiSettings) -> None:
    """Raise SettingsError when the API is not installed or another program has its port."""
    if not is_installed():
        raise SettingsError("the API is not installed: pip install 'bloomfarm[api]'")
    listen(settings.host, settings.port, "FARM_API__PORT").close()


def is_installed() -> bool:
    """Whether the packages that the API needs are there."""
    return all(importlib.util.find_spec(name) is not None for name in NEEDS)
