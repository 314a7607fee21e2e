"""Flower on the farm's broker: ``python -m farm.flower``, as ``farm flower`` and ``farm up`` start it.

Everything comes from the settings, the broker's password too, so no argument list shows it. Passwords for people come
from Flower's own FLOWER_BASIC_AUTH, or FLOWER_AUTH with FLOWER_AUTH_PROVIDER.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from farm import flower_config
from farm.broker import make_app
from farm.errors import FarmError, SettingsError
from farm.listening import is_loopback, listen
from farm.local.discover import discover
from farm.settings import FlowerSettings, Settings, load_settings

AUTH_NAMES = ("FLOWER_BASIC_AUTH", "FLOWER_AUTH")
# Where kombu notes what was taken and not yet acknowledged: not with the workers', which Flower need not even read.
OWN_KEYS = {
    "unacked_key": "flower.unacked",
    "unacked_index_key": "flower.unacked_index",
    "unacked_mutex_key": "flower.unacked_mutex",
}


def check_exposure(settings: FlowerSettings, environ: Mapping[str, str]) -> None:
    """Raise SettingsError for a Flower that other machines could reach without a password."""
    if not is_loopback(settings.host) and not any(environ.get(name) for name in AUTH_NAMES):
        raise SettingsError(
            f"Flower on {settings.host} would be open to everyone who reaches this machine: "
            "set FLOWER_BASIC_AUTH=user:password, or keep it on 127.0.0.1"
        )


def check_start(settings: FlowerSettings) -> None:
    """Raise SettingsError when Flower is not installed or another program has its port."""
    if importlib.util.find_spec("flower") is None:
        raise SettingsError("Flower is not installed: pip install 'bloomfarm[flower]'")
    listen(settings.host, settings.port, "FARM_FLOWER__PORT").close()


def arguments(settings: Settings) -> list[str]:
    """Flower's command line: nothing secret. Quiet, for its banner lists every task that Celery brings."""
    return [
        "--quiet",
        "flower",
        f"--conf={Path(flower_config.__file__)}",
        f"--address={settings.flower.host}",
        f"--port={settings.flower.port}",
        f"--max_tasks={settings.flower.max_tasks}",
    ]


def main() -> None:
    """Run Flower until it is terminated."""
    try:
        settings = discover(load_settings())
        check_exposure(settings.flower, os.environ)
        check_start(settings.flower)
        app = make_app(settings)
    except FarmError as error:
        sys.exit(f"farm flower: {error}")
    app.conf.broker_transport_options |= OWN_KEYS
    app.start(arguments(settings))


if __name__ == "__main__":
    main()
