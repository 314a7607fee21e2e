"""``/docs`` and ``/openapi.json``: what the API can do, for people and programs. Works without a network."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import resources

import orjson
from fastapi import FastAPI
from starlette.exceptions import HTTPException

from api.answers import Answer, Header
from api.auth import needs_key
from api.operations import BEFORE_KEY, HERE, KEY
from api.requests import Call

_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}\Z")
ASSETS = {"swagger-ui-bundle.js": b"text/javascript", "swagger-ui.css": b"text/css"}
PAGE = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Bloomfarm API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="page"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
START = b"""SwaggerUIBundle({
  url: "openapi.json", dom_id: "#page", deepLinking: true, persistAuthorization: false, tryItOutEnabled: true
});
"""
# Nothing but our own: no other host is asked, whatever a description says. Swagger UI styles its elements in place.
POLICY: Header = (
    b"content-security-policy",
    b"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
)
DAY: Header = (b"cache-control", b"public, max-age=86400")


class DocsRoutes:
    """The endpoints."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._text: bytes | None = None

    async def page(self, call: Call) -> Answer:
        """Swagger UI over this server's own OpenAPI document."""
        del call
        return Answer(PAGE, headers=[POLICY], media=b"text/html; charset=utf-8")

    async def asset(self, call: Call) -> Answer:
        """A file of the page."""
        name = call.path_params["name"]
        if name == "start.js":
            return Answer(START, media=b"text/javascript")
        if name not in ASSETS:
            raise HTTPException(404)
        return Answer(_file(name), headers=[DAY], media=ASSETS[name])

    async def openapi(self, call: Call) -> Answer:
        """The OpenAPI document, with examples that work where it is read."""
        host = call.header(b"host") or ""
        here = f"{call.scope['scheme']}://{host}" if _HOST.match(host) else HERE
        return Answer(self._document().replace(HERE.encode(), here.encode()))

    def _document(self) -> bytes:
        if self._text is None:
            text = orjson.dumps(self._app.openapi())
            if needs_key(self._app.state.settings):
                text = text.replace(BEFORE_KEY.encode(), BEFORE_KEY.encode() + orjson.dumps(KEY)[1:-1])
            self._text = text
        return self._text


@lru_cache(maxsize=len(ASSETS))
def _file(name: str) -> bytes:
    return (resources.files("fastapi_offline") / "static" / name).read_bytes()
