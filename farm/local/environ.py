"""Hand settings to a child process: by its environment, where no list of processes shows a password."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, SecretStr

from farm.settings import PREFIX, Settings, setting_names


def child_environ(settings: Settings, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment in which ``load_settings`` gives these settings, and nothing else of the farm's is set.

    base: what else the child gets; this process's environment unless given.
    """
    ours = set(setting_names())
    environ = {name: text for name, text in (os.environ if base is None else base).items() if name.upper() not in ours}
    for group_name in type(settings).model_fields:
        group: BaseModel = getattr(settings, group_name)
        for name, field in type(group).model_fields.items():
            value = getattr(group, name)
            if value != field.get_default(call_default_factory=True):
                environ[f"{PREFIX}{group_name}__{name}".upper()] = _text(value)
    return environ


def with_values(settings: Settings, **groups: Mapping[str, Any]) -> Settings:
    """A copy with some values changed, as ``worker={"name": "local-1"}``."""
    changed = {name: getattr(settings, name).model_copy(update=dict(values)) for name, values in groups.items()}
    return settings.model_copy(update=changed)


def _text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, list):
        return ",".join(value)
    if isinstance(value, bool):
        return json.dumps(value)
    return str(value)
