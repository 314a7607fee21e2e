"""A worker's HTTP port: ``/metrics`` for Prometheus, ``/livez`` and ``/readyz`` for probes. One line of JSON each.

/livez    200, or 503 once only a restart would help
/readyz   200, or 503 with the reason: starting, draining, engine starting again, engine failing, server unreachable
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, make_wsgi_app

from farm import telemetry
from farm.exposition import LedgerCollector
from workers.collectors import EngineCollector, GpuCollector, UpCollector, WebhookCollector
from workers.gpus import Gpus

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from workers.health import Health
    from workers.host import Host


def serve(host: Host) -> None:
    """Answer at ``FARM_TELEMETRY__PORT`` if that is set. A port that can't be had fails no worker."""
    if host.settings.telemetry.port is not None:
        telemetry.serve(host.settings.telemetry, _with_probes(make_wsgi_app(_registry(host)), host.health))


def _registry(host: Host) -> CollectorRegistry:
    """What this worker exports."""
    registry = CollectorRegistry()
    registry.register(LedgerCollector(host.jobs))
    model = host.settings.model.name if host.runner is not None else ""
    registry.register(UpCollector(host.name, model, host.health.why_unready))
    if host.runner is not None:
        registry.register(EngineCollector(host.settings, host.runner))
        registry.register(GpuCollector(Gpus()))
    if host.chores is not None:
        registry.register(WebhookCollector(host.chores.webhook_outcomes))
    return registry


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
