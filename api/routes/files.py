"""``/v1/files``: upload, list, read, download and delete, as OpenAI's clients do. Content is never whole in memory."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, BinaryIO, get_args
from urllib.parse import quote

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.answers import Answer, Header, encode
from api.auth import Guard
from api.errors import FileTooLarge
from api.forms import Form, body_of, boundary_of
from api.requests import Call, whole
from api.routes.jobs import CACHE
from api.service import Service
from farm.errors import FarmError, InvalidRequest, nearest
from farm.file_store import Writer, open_store, store_errors
from farm.ledger.files import MOST_PAGE, File, Files, Order, new_file_id, unknown
from farm.ledger.trash import Trash

PURPOSES = ("batch",)
LISTED = ("batch", "batch_output")
ORDERS: tuple[Order, ...] = get_args(Order)
FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
EXPIRY_S = (3600, 30 * 86_400)
PIECE_BYTES = 1 << 20
FORM_BYTES = 64 << 10  # what a form adds to its file


class FileRoutes:
    """The endpoints."""

    def __init__(self, service: Service, guard: Guard) -> None:
        """Raises SettingsError for a file store that can't be used."""
        self._service = service
        self._guard = guard
        self._files = Files(service.jobs)
        self._trash = Trash(service.jobs)
        self._store = open_store(service.settings)
        self._most_bytes = service.settings.files.max_bytes

    async def upload(self, call: Call) -> Answer:
        """Keep a file."""
        tenant = await self._guard.admit(call, "submit")
        call.query()
        form = Form(boundary_of(call.header(b"content-type")), "file")
        declared = call.header(b"content-length") or "0"
        if not declared.isdigit() or len(declared) > 18 or int(declared) > self._most_bytes + FORM_BYTES:
            raise self._too_large()
        await self._service.call(self._files.check_room, tenant, max(0, int(declared) - FORM_BYTES))
        file_id = new_file_id()
        path = f"files/{file_id}"
        # Whatever becomes of this: what is not registered in time is deleted.
        await self._service.call(self._trash.announce, path)
        writer = await self._service.call_store(self._store.writer, path)
        try:
            size = await self._receive(call, form, writer)
            keep_s = expiry_of(form)
            await self._service.call(self._files.check_room, tenant, size)
            await self._service.call_store(writer.commit)
        except FarmError:
            with suppress(FarmError):
                await self._service.call(self._trash.announce, path, 0)  # sooner than that
            raise
        finally:
            await self._service.call_store(writer.__exit__, None, None, None)
        # An error from here on may come after the file was registered: its content must stay.
        made = await self._service.call(
            self._files.add,
            *(file_id, tenant, path),
            filename=form.filename or "",
            purpose=form.fields["purpose"],
            size=size,
            keep_s=keep_s,
        )
        return Answer(encode(made.to_dict()))

    async def list(self, call: Call) -> Answer:
        """A tenant's files."""
        tenant = await self._guard.admit(call, "read")
        query = call.query("purpose", "order", "after", "limit")
        order = query.get("order", "desc")
        if order not in ORDERS:
            raise InvalidRequest("order", f"{order[:60]!r} is no order; give asc or desc")
        purpose = query.get("purpose")
        if purpose is not None and purpose not in LISTED:
            raise InvalidRequest("purpose", f"{purpose[:60]!r} is no purpose here{nearest(purpose[:60], LISTED)}")
        page = await self._service.call(
            self._files.page,
            tenant,
            purpose=purpose,
            order=order,
            after=query.get("after"),
            limit=whole("limit", query.get("limit", str(MOST_PAGE)), 1, MOST_PAGE),
        )
        return Answer(encode(list_of([file.to_dict() for file in page.files], page.has_more)), headers=[CACHE])

    async def read(self, call: Call) -> Answer:
        """What is known of a file."""
        file = await self._find(call)
        return Answer(encode(file.to_dict()), headers=[CACHE])

    async def content(self, call: Call) -> Response:
        """A file's content."""
        file = await self._find(call)
        try:
            opened = await self._service.call_store(self._store.reader, file.path)
        except FileNotFoundError:
            raise unknown(file.id) from None
        return Content(self._service, file, opened)

    async def delete(self, call: Call) -> Answer:
        """Forget a file, and delete its content."""
        tenant = await self._guard.admit(call, "submit")
        call.query()
        file_id = call.path_params["file_id"]
        path = await self._service.call(self._files.drop, file_id, tenant)
        with suppress(FarmError):  # it is forgotten; the janitor deletes what is left of it
            await self._service.call_store(self._store.delete, path)
            await self._service.call(self._trash.deleted, path)
        return Answer(encode({"id": file_id, "object": "file", "deleted": True}))

    async def _find(self, call: Call) -> File:
        tenant = await self._guard.admit(call, "read")
        call.query()
        return await self._service.call(self._files.get, call.path_params["file_id"], tenant)

    async def _receive(self, call: Call, form: Form, writer: Writer) -> int:
        """Write the file of a form as it comes. Returns its size."""
        size, waiting = 0, bytearray()
        async for data in body_of(call):
            waiting += form.feed(data)
            if size + len(waiting) > self._most_bytes:
                raise self._too_large()
            if len(waiting) >= PIECE_BYTES:
                size += len(waiting)
                await self._service.call_store(writer.write, bytes(waiting))
                waiting.clear()
                call.give_time()
        await self._service.call_store(writer.write, bytes(waiting))
        if not form.is_complete:
            raise InvalidRequest("body", "ends before the form does; send all of it")
        return size + len(waiting)

    def _too_large(self) -> FileTooLarge:
        return FileTooLarge("file", f"is larger than {self._most_bytes:,} bytes; split it")


class Content(Response):
    """The content of a file, read as fast as the client takes it."""

    def __init__(self, service: Service, file: File, opened: BinaryIO) -> None:
        self._service = service
        self._opened = opened
        self.status_code = 200
        self.background = None
        self.raw_headers: list[Header] = [
            (b"content-type", b"application/octet-stream"),
            (b"content-length", b"%d" % file.size),
            (b"content-disposition", f"attachment; filename*=UTF-8''{quote(file.filename)}".encode()),
            (b"x-content-type-options", b"nosniff"),
            CACHE,
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        try:
            piece = await self._service.call_store(self._read)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while piece:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                piece = await self._service.call_store(self._read)
            await send({"type": "http.response.body", "body": b""})
        finally:
            await self._service.call_store(self._opened.close)

    def _read(self) -> bytes:
        with store_errors():
            return self._opened.read(PIECE_BYTES)


def expiry_of(form: Form) -> float | None:
    """How long a file is to be kept, if its form says so; checks the other fields too. Raises InvalidRequest."""
    for name in form.fields:
        if name not in FIELDS:
            raise InvalidRequest(name[:60] or "body", f"is not a field of a file{nearest(name[:60], FIELDS)}")
    if form.filename is None:
        raise InvalidRequest("file", "is missing; send one")
    purpose = form.fields.get("purpose")
    if purpose not in PURPOSES:
        raise InvalidRequest("purpose", f"{str(purpose)[:60]!r} is not served; give batch")
    anchor, seconds = (form.fields.get(f"expires_after[{name}]") for name in ("anchor", "seconds"))
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InvalidRequest("expires_after[anchor]", f"{str(anchor)[:60]!r} is unknown; give created_at")
    return float(whole("expires_after[seconds]", seconds or "", *EXPIRY_S))


def list_of(items: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """A page as OpenAI's clients know it."""
    first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    return {"object": "list", "data": items, "first_id": first, "last_id": last, "has_more": has_more}
