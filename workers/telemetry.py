"""A worker's HTTP port: ``/metrics`` for Prometheus, ``/livez`` and ``/readyz`` for probes. One line of JSON each.

/livez    200, or 503 once only a restart would help
/readyz   200, or 503 with the reason: starting, draining, engine starting again, engine failing, server unreachable
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app

from farm.settings import TelemetrySettings
from workers.health import Health
from workers.metrics import EngineCollector
from workers.runner import Runner

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

log = structlog.get_logger(__name__)


class _Server(ThreadingMixIn, WSGIServer):
    """A slow reader holds up nobody."""

    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Silent(WSGIRequestHandler):
    """Logs no line per scrape and probe."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def serve(settings: TelemetrySettings, health: Health, runner: Runner | None) -> None:
    """Answer at ``FARM_TELEMETRY__PORT`` if that is set. A port that can't be had fails no worker.

    runner: whose engine has metrics; None for a worker without one.
    """
    if settings.port is None:
        return
    registry = CollectorRegistry()
    if runner is not None:
        registry.register(EngineCollector(runner.lives))
    app = _with_probes(make_wsgi_app(registry), health)
    kind = _Server6 if ":" in settings.host else _Server
    try:
        server = make_server(settings.host, settings.port, app, kind, _Silent)
    except OSError as error:
        log.warning("telemetry_not_served", host=settings.host, port=settings.port, error=str(error))
        return
    threading.Thread(target=server.serve_forever, name="telemetry", daemon=True).start()
    log.info("telemetry_served", url=f"http://{settings.host}:{settings.port}")


def _with_probes(metrics: WSGIApplication, health: Health) -> WSGIApplication:
    """The metrics' app, with the probes beside it."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            return metrics(environ, start_response)
        if path == "/livez":
            status, body = _verdict("alive", health.why_dead())
        elif path == "/readyz":
            status, body = _verdict("ready", health.why_unready())
        else:
            status, body = "404 Not Found", {"error": "there are /metrics, /livez and /readyz"}
        start_response(status, [("Content-Type", "application/json"), ("Cache-Control", "no-store")])
        return [json.dumps(body).encode() + b"\n"]

    return answer


def _verdict(claim: str, reason: str) -> tuple[str, dict[str, object]]:
    if reason:
        return "503 Service Unavailable", {claim: False, "reason": reason}
    return "200 OK", {claim: True}
