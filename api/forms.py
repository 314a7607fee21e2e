"""Forms as browsers and OpenAI's clients send files: taken apart as they come, so that no file is whole in memory."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from api.errors import Gone, MediaRefused
from api.requests import Call
from farm.errors import InvalidRequest

MOST_PARTS = 16
MOST_FIELD_BYTES = 1024
MOST_NAME_CHARS = 255
MOST_BOUNDARY = 70  # RFC 2046
_ODD = re.compile(r"[\x00-\x1f\x7f\"]|^\.+$")


class Form:
    """One form: short fields, and the content of one file passed through."""

    def __init__(self, boundary: bytes, file_field: str) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.is_complete = False
        self._file_field = file_field
        self._parts = 0
        self._headers: dict[bytes, bytes] = {}
        self._header = (bytearray(), bytearray())
        self._name = ""
        self._is_file = False
        self._value = bytearray()
        self._pieces: list[bytes] = []
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_begin": self._begin_header,
                "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes) -> bytes:
        """Take a piece of the body. Returns what of the file's content is in it. Raises InvalidRequest."""
        self._pieces.clear()
        try:
            self._parser.write(data)
        except FormParserError:
            raise InvalidRequest(
                "body", "is no form; send multipart/form-data with the boundary that it names"
            ) from None
        return b"".join(self._pieces)

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise InvalidRequest("body", f"has more than {MOST_PARTS} fields; send file and purpose")
        self._headers.clear()
        self._value.clear()

    def _begin_header(self) -> None:
        self._header = (bytearray(), bytearray())

    def _end_header(self) -> None:
        self._headers[bytes(self._header[0]).lower()] = bytes(self._header[1])

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._is_file = self._name == self._file_field
        if self._name in self.fields or (self._is_file and self.filename is not None):
            raise InvalidRequest(self._name[:60], "is given twice; give it once")
        if self._is_file:
            if b"filename" not in options:
                raise InvalidRequest(self._name, "is no file; send it with a filename")
            self.filename = clean_name(options[b"filename"].decode("utf-8", "replace"))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._pieces.append(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > MOST_FIELD_BYTES:
            raise InvalidRequest(self._name[:60] or "body", f"has more than {MOST_FIELD_BYTES:,} bytes; shorten it")

    def _end_part(self) -> None:
        if not self._is_file:
            self.fields[self._name] = self._value.decode("utf-8", "replace")

    def _end(self) -> None:
        self.is_complete = True


def boundary_of(content_type: str | None) -> bytes:
    """The boundary that the header names. Raises MediaRefused, InvalidRequest."""
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise MediaRefused("the body must be a form and say so; send it as multipart/form-data")
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= MOST_BOUNDARY:
        raise InvalidRequest("Content-Type", f"names no boundary of 1 to {MOST_BOUNDARY} characters")
    return boundary


def clean_name(name: str) -> str:
    """A filename without folders and characters that trouble headers and terminals."""
    last = _ODD.sub("", name.replace("\\", "/").rpartition("/")[2]).strip()
    return last[:MOST_NAME_CHARS] or "upload"


async def body_of(call: Call) -> AsyncIterator[bytes]:
    """The body, piece by piece. Raises Gone when the client is."""
    more = True
    while more:
        message = await call.receive()
        if message["type"] == "http.disconnect":
            raise Gone
        if piece := message.get("body", b""):
            yield piece
        more = message.get("more_body", False)
