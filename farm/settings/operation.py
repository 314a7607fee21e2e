"""The farm on one machine, logs and telemetry."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from farm.contracts import is_text
from farm.settings.base import Group


class LocalSettings(Group):
    state_dir: Path = Path("~/.local/state/farm")
    """Where ``farm up`` keeps data, logs and addresses."""

    @field_validator("state_dir")
    @classmethod
    def _has_a_name_to_write(cls, value: Path) -> Path:
        if not is_text(str(value)):
            raise ValueError("a folder whose name is UTF-8 text")
        return value

    @property
    def folder(self) -> Path:
        """The state folder with ``~`` resolved."""
        return self.state_dir.expanduser()


class LogsSettings(Group):
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """INFO says one line per job, DEBUG one per step."""
    format: Literal["auto", "json", "text"] = "auto"
    """auto: text on a terminal, JSON elsewhere."""


class TelemetrySettings(Group):
    host: str = "127.0.0.1"
    """Where a worker answers Prometheus and probes, and the API Prometheus, without a key: keep strangers out."""
    port: int | None = Field(None, ge=1, le=65535)
    """The port of its /metrics. Unset: none. Parts of one machine need one each; farm up gives each a free one."""
