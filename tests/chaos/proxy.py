"""A TCP proxy between the farm and its server that breaks what it is told to break.

It knows nothing of Redis but the form of its URLs: a request is a chunk of bytes from the client, a reply one from the
server. Every fault can be set twice and taken back twice. It runs in a thread of its own; steer it from any other.

    with FaultProxy(server.url) as proxy:
        farm = Farm(url=proxy.url)
        proxy.drop_next_reply(matching=b"EVALSHA")   # runs on the server, and the caller never hears of it
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

HOST = "127.0.0.1"
CHUNK = 1 << 18
ORDER_S = 10.0  # how long an order to the proxy's thread may take

T = TypeVar("T")


@dataclass
class Counts:
    """What went through so far."""

    connections: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    replies_dropped: int = 0
    requests_cut: int = 0


@dataclass(frozen=True)
class _Trap:
    """A fault for one request that holds these bytes."""

    kind: Literal["drop_reply", "cut_before"]
    matching: bytes


@dataclass(eq=False)
class _Link:
    """One client's connection and its counterpart at the server."""

    task: asyncio.Task[None]
    writers: list[asyncio.StreamWriter]
    pumps: list[asyncio.Task[None]] = field(default_factory=list)
    is_aborted: bool = False
    swallows_reply: bool = False

    def abort(self) -> None:
        self.is_aborted = True
        for writer in self.writers:
            writer.transport.abort()
        for pump in self.pumps:
            pump.cancel()


class FaultProxy:
    """Forwards a port of its own on loopback to ``upstream``: a URL, or host:port. Use it in a ``with``."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream if "://" in upstream else f"redis://{upstream}")
        self.counts = Counts()
        self._links: set[_Link] = set()
        self._traps: list[_Trap] = []
        self._delay_s = 0.0
        self._server: asyncio.Server | None = None
        # Bound and never listening, it keeps the port ours while connections are refused.
        self._place = _bound(0)
        self.port: int = self._place.getsockname()[1]
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="fault-proxy")

    @property
    def url(self) -> str:
        """The upstream's URL with the proxy's address in it; credentials and database stay."""
        login, at, _ = self._upstream.netloc.rpartition("@")
        return urlunsplit(self._upstream._replace(netloc=f"{login}{at}{HOST}:{self.port}"))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(ORDER_S), "the proxy did not start"
        return self

    def __exit__(self, *_raised: object) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(ORDER_S)
        self._place.close()

    # Faults.

    def cut(self) -> None:
        """Close all connections, on both sides. New ones are taken."""
        self._order(self._cut())

    def refuse(self) -> None:
        """Close all connections and refuse new ones, as a server that is down, until ``accept``."""
        self._order(self._refuse())

    def accept(self) -> None:
        """Take connections again."""
        self._order(self._accept())

    def stall(self) -> None:
        """Forward nothing either way and keep all connections, new ones too, until ``resume``.

        What was sent meanwhile is forwarded then, as by a network that was slow, even if the sender has gone.
        """
        self._order(self._set_flowing(False))

    def resume(self) -> None:
        """Forward again."""
        self._order(self._set_flowing(True))

    def delay(self, seconds: float) -> None:
        """Forward each chunk this much later; 0 ends it."""
        self._delay_s = seconds

    def drop_next_reply(self, matching: bytes = b"") -> None:
        """Forward the next request that holds these bytes, keep its reply, and close its connection.

        The server has run it; the client can't know. Called twice, it is for two requests. Without ``matching`` the
        next chunk of any kind is meant, a new connection's greeting too. The bytes must lie within one chunk: a
        command's name, a script's hash and the first arguments do.
        """
        self._order(self._set_trap(_Trap("drop_reply", matching)))

    def cut_before_next_request(self, matching: bytes = b"") -> None:
        """Close the connection of the next request that holds these bytes, and forward nothing of it."""
        self._order(self._set_trap(_Trap("cut_before", matching)))

    @property
    def traps_left(self) -> int:
        """How many single faults wait for their request."""
        return len(self._traps)

    def heal(self) -> None:
        """End all faults."""
        self._delay_s = 0.0
        self._traps.clear()
        self.resume()
        self.accept()

    # In the thread.

    def _order(self, order: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(order, self._loop).result(ORDER_S)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._closing, self._flowing = asyncio.Event(), asyncio.Event()
        self._flowing.set()
        await self._accept()
        self._started.set()
        await self._closing.wait()
        await self._refuse()
        while len(asyncio.all_tasks()) > 1:  # connections that were taken and not served yet
            await asyncio.sleep(0)
            await self._cut()

    async def _accept(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, sock=_bound(self.port), backlog=512)

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._cut()

    async def _cut(self) -> None:
        links = list(self._links)
        for link in links:
            link.abort()
        await asyncio.gather(*(link.task for link in links), return_exceptions=True)

    async def _set_flowing(self, is_flowing: bool) -> None:
        if is_flowing:
            self._flowing.set()
        else:
            self._flowing.clear()

    async def _set_trap(self, trap: _Trap) -> None:
        self._traps.append(trap)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        link = _Link(task, [writer])
        self._links.add(link)
        self.counts.connections += 1
        try:
            address = self._upstream.hostname or HOST, self._upstream.port or 6379
            up_reader, up_writer = await asyncio.open_connection(*address)
            link.writers.append(up_writer)
            if not link.is_aborted:
                link.pumps = [
                    asyncio.create_task(self._pump_up(link, reader, up_writer)),
                    asyncio.create_task(self._pump_down(link, up_reader, writer)),
                ]
                await asyncio.wait(link.pumps, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            writer.transport.abort()  # the server is away
        finally:
            for pump in link.pumps:
                pump.cancel()
            for end in link.writers:
                end.close()
            ends = (end.wait_closed() for end in link.writers)
            await asyncio.gather(*link.pumps, *ends, return_exceptions=True)
            self._links.discard(link)

    async def _pump_up(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await self._next(reader):
            trap = next((trap for trap in self._traps if trap.matching in chunk), None)
            if trap is not None:
                self._traps.remove(trap)
                if trap.kind == "cut_before":
                    self.counts.requests_cut += 1
                    link.abort()
                    return
                link.swallows_reply = True
            self.counts.bytes_up += len(chunk)
            writer.write(chunk)
            await writer.drain()

    async def _pump_down(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await self._next(reader):
            if link.swallows_reply:
                self.counts.replies_dropped += 1
                link.abort()
                return
            self.counts.bytes_down += len(chunk)
            writer.write(chunk)
            await writer.drain()

    async def _next(self, reader: asyncio.StreamReader) -> bytes:
        """The next chunk when it may go on; none at the end, however the connection ended."""
        try:
            chunk = await reader.read(CHUNK)
        except OSError:
            return b""
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        await self._flowing.wait()
        return chunk


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((HOST, port))
    return bound
