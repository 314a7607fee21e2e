"""Show the built site to this machine. Links of alerts and dashboards lead here until the docs are published."""

from __future__ import annotations

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PORT = 8008


def server(folder: Path, port: int = PORT) -> ThreadingHTTPServer:
    """A server of a folder on 127.0.0.1, which ``serve_forever`` starts. Raises OSError for a port that is taken."""
    return ThreadingHTTPServer(("127.0.0.1", port), partial(_Quiet, directory=str(folder)))


class _Quiet(SimpleHTTPRequestHandler):
    """Says nothing of requests."""

    def log_message(self, format: str, *args: object) -> None:
        del format, args
