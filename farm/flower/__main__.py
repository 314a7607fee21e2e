"""Flower's process: ``python -m farm.flower``, as ``farm flower`` and ``farm up`` start it.

Everything comes from the settings, the broker's password too, so no argument list shows it. Passwords for people come
from Flower's own FLOWER_BASIC_AUTH, or FLOWER_AUTH with FLOWER_AUTH_PROVIDER.
"""

from __future__ import annotations

import os
import sys

from farm import logs
from farm.broker import make_app
from farm.errors import FarmError
from farm.flower import check_exposure, check_start, db_path
from farm.local.discover import discover
from farm.no_arguments import take_none
from farm.settings import load_settings

# Where kombu notes what was taken and not yet acknowledged: not with the workers', which Flower need not even read.
OWN_KEYS = {
    "unacked_key": "flower.unacked",
    "unacked_index_key": "flower.unacked_index",
    "unacked_mutex_key": "flower.unacked_mutex",
}


def main() -> None:
    """Run Flower until it is terminated."""
    take_none("farm.flower", "farm flower")
    try:
        settings = discover(load_settings())
        check_exposure(settings.flower, os.environ)
        check_start(settings)
        app = make_app(settings)
    except FarmError as error:
        sys.exit(f"farm flower: {error}")
    logs.setup(settings.logs)
    app.conf.broker_transport_options |= OWN_KEYS

    from farm.flower.site import run  # Flower may not be installed: check_start says so

    run(app, settings.flower, db_path(settings))


if __name__ == "__main__":
    main()
