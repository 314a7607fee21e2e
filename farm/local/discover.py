"""Find the local farm that is running, through the file that ``farm up`` leaves in its state folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from farm.errors import SettingsError
from farm.settings import Settings

FILE = "farm.json"


def discover(settings: Settings) -> Settings:
    """The settings with a server to talk to: theirs, else the running local farm's, and its model unless they name one.

    Raises SettingsError when no server is named and no local farm is running.
    """
    if settings.redis.url is not None:
        return settings
    found = running_farm(settings)
    if found is None:
        raise SettingsError(nowhere(settings))
    if "id" not in settings.model.model_fields_set and isinstance(found.get("model"), str):
        settings = settings.model_copy(update={"model": settings.model.model_copy(update={"id": found["model"]})})
    return with_url(settings, found["redis_url"])


def running_farm(settings: Settings) -> dict[str, Any] | None:
    """What the running local farm says of itself (``redis_url``, ``pid``, addresses); None if there is none.

    A file whose process is gone, or that is unreadable, counts as none.
    """
    path: Path = settings.local.folder / FILE
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        is_whole = isinstance(said["redis_url"], str) and isinstance(said["pid"], int)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return said if is_whole and _is_alive(said["pid"]) else None


def nowhere(settings: Settings) -> str:
    """What to tell who named no server, while no local farm runs."""
    return (
        f"no farm runs in {settings.local.folder}; start one with: farm up (or set FARM_REDIS__URL, for one elsewhere)"
    )


def with_url(settings: Settings, url: str | None) -> Settings:
    """The settings with another server, or with none."""
    secret = None if url is None else SecretStr(url)
    return settings.model_copy(update={"redis": settings.redis.model_copy(update={"url": secret})})


def _is_alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
