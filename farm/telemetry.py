"""The HTTP port on which a part answers Prometheus, and probes. What it can't have or do fails no part."""

from __future__ import annotations

import socket
import threading
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog

from farm.settings import TelemetrySettings

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

log = structlog.get_logger(__name__)


class _Server(ThreadingMixIn, WSGIServer):
    """A slow reader holds up nobody."""

    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Silent(WSGIRequestHandler):
    """Logs no line per scrape and probe."""

    timeout = 10.0  # seconds that a silent client may hold its thread

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def serve(settings: TelemetrySettings, app: WSGIApplication) -> None:
    """Answer at ``FARM_TELEMETRY__PORT`` if that is set. A port that can't be had is one line in the log."""
    if settings.port is None:
        return
    kind = _Server6 if ":" in settings.host else _Server
    try:
        server = make_server(settings.host, settings.port, app, kind, _Silent)
    except OSError as error:
        log.warning("telemetry_not_served", host=settings.host, port=settings.port, error=str(error))
        return
    threading.Thread(target=server.serve_forever, name="telemetry", daemon=True).start()
    log.info("telemetry_served", url=f"http://{settings.host}:{settings.port}")
