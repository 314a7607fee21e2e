"""Serve the API: one socket, and one or several processes that take connections from it.

Everything comes from the settings. Several processes are uvicorn's to watch: one that dies is started again, and none
outlives the first.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable

import structlog
import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from api import telemetry
from api.app import create_app
from api.recorder import exported, share
from farm import logs
from farm.errors import FarmError
from farm.ledger.jobs import Jobs
from farm.listening import listen, url_of
from farm.local.discover import discover
from farm.local.environ import child_environ
from farm.local.tether import tie
from farm.rest import check_exposure, with_keys
from farm.settings import Settings, load_settings

log = structlog.get_logger(__name__)
BACKLOG = 2048
KEEP_ALIVE_S = 75  # longer than a load balancer's minute, so that it is never we who close first


def main() -> None:
    """Serve until terminated. An address or setting that can't be used is one line, and status 1."""
    try:
        settings = discover(with_keys(load_settings()))
        check_exposure(settings.api)
        logs.setup(settings.logs)
        listener = listen(settings.api.host, settings.api.port, "FARM_API__PORT")
    except FarmError as error:
        sys.exit(f"farm api: {error}")
    with listener:
        serve(settings, listener)


def serve(settings: Settings, listener: socket.socket) -> None:
    """Serve on a bound socket until terminated."""
    os.environ.update(child_environ(settings))  # what processes to come go by
    _allow_many_files()
    host, port = listener.getsockname()[:2]
    log.info("the API listens", url=url_of(host, port), keys=settings.api.keys, processes=settings.api.processes)
    config = config_of(settings, "api.serve:make_app")
    with share(config.workers or 1):
        _run(config, settings, listener)


def _run(config: uvicorn.Config, settings: Settings, listener: socket.socket) -> None:
    """Run until terminated, in this process or in several."""
    if config.workers == 1:
        for number in (signal.SIGINT, signal.SIGTERM):
            # Uvicorn raises the signal again when it has stopped; that is no reason to end as if killed.
            signal.signal(number, lambda _number, _frame: None)
        uvicorn.Server(config).run(sockets=[listener])
    else:
        # This process serves no requests, and so outlives all that do.
        telemetry.serve(settings.telemetry, exported(Jobs(settings)))
        Multiprocess(config, sockets=[listener]).run()


def config_of(settings: Settings, factory: str | Callable[[], FastAPI]) -> uvicorn.Config:
    """How uvicorn serves the app that ``factory`` makes in each process."""
    return uvicorn.Config(
        factory,
        factory=True,
        workers=settings.api.processes,
        http="api.protocol:Protocol",
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.api.stop_s),
    )


def make_app() -> FastAPI:
    """The app of one process, by its environment."""
    if (first := multiprocessing.parent_process()) is not None and first.pid is not None:
        tie(signal.SIGTERM, first.pid)
    settings = load_settings()
    logs.setup(settings.logs)
    app = create_app(settings)
    if first is None:
        telemetry.serve(settings.telemetry, app.recorder.registry(app.state.service.jobs))
    return app


def _allow_many_files() -> None:
    """A connection is a file: allow as many as this process may allow itself."""
    with contextlib.suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
