"""What a request says, read once and strictly: headers, query, body. Whatever is odd is refused by name."""

from __future__ import annotations

import re
from functools import cached_property
from urllib.parse import parse_qsl

import orjson
from starlette.requests import Request

from api.errors import BodyTooLarge, Gone, MediaRefused, NotJson
from farm.errors import InvalidRequest, nearest

MAX_DEPTH = 8
MAX_WAIT_S = 60.0
MAX_KEY_CHARS = 255
_NUMBER = re.compile(r"\d+(\.\d+)?([eE][+-]?\d+)?\Z", re.ASCII)
_PREFER_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})\"?\s*(?:$|[,;])", re.IGNORECASE)
_VISIBLE = re.compile(r"[!-~]+\Z")


class Call(Request):
    """A request that reads its headers once. A header that comes twice counts as the last of them."""

    @cached_property
    def head(self) -> dict[bytes, bytes]:
        """The headers by their names in small letters."""
        return dict(self.scope["headers"])

    def header(self, name: bytes) -> str | None:
        """A header's text."""
        value = self.head.get(name)
        return None if value is None else value.decode("latin-1")

    def query(self, *known: str) -> dict[str, str]:
        """The parameters after the question mark. Raises InvalidRequest for one that is unknown or comes twice."""
        text: bytes = self.scope["query_string"]
        if not text:
            return {}
        found: dict[str, str] = {}
        try:
            pairs = parse_qsl(text.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=32)
        except ValueError:
            raise InvalidRequest("query", "can't be read; give name=value pairs joined by &") from None
        for name, value in pairs:
            if name not in known:
                raise InvalidRequest(name[:60], f"is not a parameter here{nearest(name[:60], known)}")
            if name in found:
                raise InvalidRequest(name, "is given twice; give it once")
            found[name] = value
        return found

    async def json(self) -> object:
        """The body's JSON. Raises MediaRefused, BodyTooLarge, NotJson; Gone when the client is."""
        kind = self.head.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise MediaRefused("the body must be JSON and say so; send the header Content-Type: application/json")
        body = await self.bytes()
        try:
            value: object = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise NotJson("body", f"is no JSON: {error.msg}, line {error.lineno}, column {error.colno}") from None
        if _is_deep(value):
            raise NotJson("body", f"nests more than {MAX_DEPTH} levels deep; flatten it")
        return value

    async def bytes(self) -> bytes:
        """The body. Raises BodyTooLarge as soon as that is known."""
        most: int = self.app.state.settings.api.max_body_bytes
        declared = self.head.get(b"content-length")
        if declared is not None and declared.isdigit() and (len(declared) > 18 or int(declared) > most):
            raise _too_large(most)
        chunks: list[bytes] = []
        size, more = 0, True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise Gone
            chunk: bytes = message.get("body", b"")
            size += len(chunk)
            if size > most:
                raise _too_large(most)
            chunks.append(chunk)
            more = message.get("more_body", False)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def note_waiting(self) -> None:
        """Its answer comes when a job ends: it is not counted among those that come at once."""
        self.scope["state"]["is_waiting"] = True

    def give_time(self) -> None:
        """Have what is still to come of the body take as long as a whole request may."""
        if (give_time := self.scope["state"].get("give_time")) is not None:
            give_time()

    def preferred_wait_s(self) -> float:
        """How long the Prefer header asks to wait for the answer; 0 without, and at most a minute."""
        if (text := self.header(b"prefer")) is None or (found := _PREFER_WAIT.search(text)) is None:
            return 0.0
        return min(MAX_WAIT_S, float(found[1]))

    def idempotency_key(self) -> str | None:
        """The Idempotency-Key header. Raises InvalidRequest for what is no key."""
        if (key := self.header(b"idempotency-key")) is None:
            return None
        if len(key) > MAX_KEY_CHARS or not _VISIBLE.match(key):
            raise InvalidRequest(
                "Idempotency-Key", f"must be 1 to {MAX_KEY_CHARS} visible ASCII characters without spaces"
            )
        return key


def whole(field: str, text: str, least: int, most: int) -> int:
    """A whole number from a query or form. Raises InvalidRequest unless it is one from ``least`` to ``most``."""
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not least <= int(text) <= most:
        raise InvalidRequest(field, f"{text[:60]!r} is out of range; give {least:,} to {most:,}")
    return int(text)


def number(field: str, text: str, most: float) -> float:
    """A number from a query. Raises InvalidRequest unless it is one from 0 to ``most``."""
    if not _NUMBER.match(text) or float(text) > most:
        raise InvalidRequest(field, f"{text[:60]!r} is out of range; give a number from 0 to {most:g}")
    return float(text)


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True


def _too_large(most: int) -> BodyTooLarge:
    return BodyTooLarge("body", f"is larger than {most:,} bytes; send less at once, such as a shorter list")
