"""Flower on the farm's broker: what it may be started as. Light; what needs Flower itself is imported when it runs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

from farm.errors import SettingsError
from farm.listening import is_loopback, listen
from farm.settings import FlowerSettings, Settings

AUTH_NAMES = ("FLOWER_BASIC_AUTH", "FLOWER_AUTH")


def has_password(environ: Mapping[str, str]) -> bool:
    """Whether people must say who they are."""
    return any(environ.get(name) for name in AUTH_NAMES)


def check_exposure(settings: FlowerSettings, environ: Mapping[str, str]) -> None:
    """Raise SettingsError for a Flower that other machines could reach without a password."""
    if not is_loopback(settings.host) and not has_password(environ):
        raise SettingsError(
            f"Flower on {settings.host} would be open to everyone who reaches this machine: "
            "set FLOWER_BASIC_AUTH=user:password, or keep it on 127.0.0.1"
        )


def check_start(settings: Settings) -> None:
    """Raise SettingsError when Flower is not installed, its port is taken, or it can't write what it is to keep."""
    if importlib.util.find_spec("flower") is None:
        raise SettingsError("Flower is not installed: pip install 'bloomfarm[flower]'")
    listen(settings.flower.host, settings.flower.port, "FARM_FLOWER__PORT").close()
    folder = db_path(settings).parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(_no_place(folder, error.strerror)) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SettingsError(_no_place(folder, "it can't be written"))


def db_path(settings: Settings) -> Path:
    """Where Flower keeps what it has seen."""
    return settings.flower.db.expanduser() if settings.flower.db else settings.local.folder / "flower.db"


def _no_place(folder: Path, reason: str | None) -> str:
    return f"Flower can keep nothing in {folder} ({reason}); set FARM_FLOWER__DB to a file that it may write"
