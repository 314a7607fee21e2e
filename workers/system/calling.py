"""One HTTP call to a stranger: only where egress lets it, to the very address that was checked, and not for long.

No redirect is followed, no proxy is used, and of the answer only the head is read.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import httpcore2

from farm.egress import Egress, Target, TargetRefused, parse_target

MOST_ADDRESSES = 3
MOST_ANSWER_BYTES = 16_384  # a status and its headers; provisional answers (1xx) before it count too


@dataclass(frozen=True, slots=True)
class Called:
    """How a call went: the receiver's status, or why there is none. ``retry_after_s`` is what the receiver asks for."""

    status: int | None
    error: str | None = None
    retry_after_s: float = 0.0
    is_refused: bool = False
    """Nothing was sent: this is no address to call."""


class Caller:
    """Makes calls. For one event loop."""

    def __init__(self, egress: Egress, threads: Executor, timeout_s: float, tls: ssl.SSLContext | None = None) -> None:
        """threads: where names are resolved. timeout_s: how long a whole call may take. tls: whom to trust."""
        self._egress = egress
        self._threads = threads
        self._timeout_s = timeout_s
        self._tls = tls or ssl.create_default_context()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Called:
        """Send a body. Never raises for what the receiver or the way to it does."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._post(url, headers, body)
        except (TimeoutError, httpcore2.TimeoutException):
            return Called(None, "no answer in time")
        except TargetRefused as error:
            return Called(None, error.problem, is_refused=True)
        except httpcore2.ConnectError as error:
            return Called(None, _reason(error.args[0] if error.args else None))
        except (httpcore2.NetworkError, httpcore2.ProtocolError):
            return Called(None, "the answer broke off or is no HTTP")
        except OSError:
            return Called(None, "its name has no address")

    async def _post(self, url: str, headers: Mapping[str, str], body: bytes) -> Called:
        target = parse_target(url)
        loop = asyncio.get_running_loop()
        addresses = await loop.run_in_executor(self._threads, self._egress.addresses, target)
        backend = _Pinned(addresses[:MOST_ADDRESSES], self._timeout_s / 2)
        async with httpcore2.AsyncConnectionPool(ssl_context=self._tls, network_backend=backend) as pool:
            head = {"host": _host_of(target), "connection": "close", "content-length": str(len(body)), **headers}
            async with pool.stream("POST", _url_of(target), headers=list(head.items()), content=body) as answer:
                return Called(answer.status, None, _retry_after_s(answer.headers))


class _Brief(httpcore2.AsyncNetworkStream):
    """A connection of which only so much is read: whoever sends more before a status has none."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream
        self._left = MOST_ANSWER_BYTES

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if not self._left:
            raise httpcore2.ReadError("its answer has no end")
        data = await self._stream.read(min(max_bytes, self._left), timeout)
        self._left -= len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        return _Brief(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Pinned(httpcore2.AsyncNetworkBackend):
    """Connects to addresses that were checked, whatever the name resolves to by now."""

    def __init__(self, addresses: Sequence[str], timeout_s: float) -> None:
        self._addresses = addresses
        self._timeout_s = timeout_s
        self._plain = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        del host, timeout
        for address in self._addresses[:-1]:
            try:
                return await self._connect(
                    address, port, self._timeout_s / len(self._addresses), local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        return await self._connect(self._addresses[-1], port, self._timeout_s, local_address, socket_options)

    async def _connect(
        self,
        address: str,
        port: int,
        timeout_s: float,
        local_address: str | None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None,
    ) -> httpcore2.AsyncNetworkStream:
        return _Brief(await self._plain.connect_tcp(address, port, timeout_s, local_address, socket_options))


def _reason(cause: object) -> str:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return "its certificate is not trusted"
    return "no TLS" if isinstance(cause, ssl.SSLError) else "no connection"


def _url_of(target: Target) -> httpcore2.URL:
    return httpcore2.URL(
        scheme=target.scheme.encode(),
        host=target.host.encode(),
        port=target.port,
        target=target.resource.encode(),
    )


def _host_of(target: Target) -> str:
    host = f"[{target.host}]" if ":" in target.host else target.host
    is_usual = target.port == (443 if target.scheme == "https" else 80)
    return host if is_usual else f"{host}:{target.port}"


def _retry_after_s(headers: Sequence[tuple[bytes, bytes]]) -> float:
    """Seconds in a Retry-After header; 0 without one, or for a date."""
    found = next((value for name, value in headers if name.lower() == b"retry-after"), b"")
    return float(found) if found.isdigit() and len(found) < 9 else 0.0
