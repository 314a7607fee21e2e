"""``/playground``: one page to try the farm with, and ``/``, which leads there. Works without a network.

The page is a client of the API like any other. It needs no key to be read and holds nothing that is worth one.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib import resources

from starlette.exceptions import HTTPException

from api.answers import Answer, Header
from api.requests import Call

SCRIPT = b"text/javascript; charset=utf-8"
PAGE = "index.html"
FILES = {
    PAGE: b"text/html; charset=utf-8",
    "style.css": b"text/css; charset=utf-8",
    "icon.svg": b"image/svg+xml",
    **dict.fromkeys(("app.js", "events.js", "form.js", "http.js", "panel.js", "recent.js", "session.js"), SCRIPT),
}
# Its own files and nothing else; and what a model wrote can't become markup, whatever the page does with it.
POLICY: Header = (
    b"content-security-policy",
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    b"form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
)
HEADERS: tuple[Header, ...] = (
    POLICY,
    (b"cache-control", b"no-cache"),  # asked for by its tag: a page never meets the scripts of another version
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class PlaygroundRoutes:
    """The endpoints."""

    async def root(self, call: Call) -> Answer:
        """Whoever types the server's address finds the page."""
        del call
        return Answer(b"", 307, [(b"location", b"playground")], media=b"text/plain")

    async def page(self, call: Call) -> Answer:
        """The page."""
        return _answer(call, PAGE)

    async def asset(self, call: Call) -> Answer:
        """A file of the page."""
        name = call.path_params["name"]
        if name not in FILES or name == PAGE:
            raise HTTPException(404)
        return _answer(call, name)


def _answer(call: Call, name: str) -> Answer:
    body, tag = _file(name)
    headers = [*HEADERS, (b"etag", tag)]
    if call.head.get(b"if-none-match") == tag:
        return Answer(b"", 304, headers)
    return Answer(body, headers=headers, media=FILES[name])


@lru_cache(maxsize=len(FILES))
def _file(name: str) -> tuple[bytes, bytes]:
    """A file of the package, and its tag."""
    body = (resources.files("api") / "playground" / name).read_bytes()
    return body, b'"%s"' % hashlib.blake2b(body, digest_size=12).hexdigest().encode()
