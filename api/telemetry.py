"""The API's other port, ``FARM_TELEMETRY__PORT``: its metrics, for those who need no key because they are inside."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, make_wsgi_app

from farm import telemetry
from farm.settings import TelemetrySettings

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


def serve(settings: TelemetrySettings, registry: CollectorRegistry) -> None:
    """Answer there, if it is set."""
    if settings.port is not None:
        telemetry.serve(settings, _metrics_alone(make_wsgi_app(registry)))


def _metrics_alone(metrics: WSGIApplication) -> WSGIApplication:
    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("PATH_INFO") == "/metrics":
            return metrics(environ, start_response)
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"there is /metrics\n"]

    return answer
