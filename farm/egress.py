"""Where the farm may call out to: addresses of the open internet, and networks that a setting allows.

A URL that a tenant gave must not lead into the farm's own network. Checking its text is not enough: a name may resolve
to any address, to several, and to another one a moment later. So a name is resolved once, every address that comes back
is checked, and the connection goes to one of these and never asks again. Knows no HTTP.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from farm.errors import InvalidRequest

MOST_CHARS = 2048
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[[str, int], list[str]]

_VISIBLE = re.compile(r"[!-~]+\Z")
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z)({_LABEL}\.)*{_LABEL}\.?\Z")
_NUMBER = re.compile(r"(\d+|0[xX][0-9A-Fa-f]*)\Z")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
# Not open, though Python's is_global may call some so: tunnels that carry IPv4 addresses, and what is set aside.
_CLOSED: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)


class TargetRefused(InvalidRequest):
    """A URL that the farm must not call."""

    code = "target_refused"


@dataclass(frozen=True, slots=True)
class Target:
    """A well-formed URL. ``host`` is a name or an address without brackets; ``resource`` is what to ask of it."""

    scheme: str
    host: str
    port: int
    resource: str

    @property
    def receiver(self) -> str:
        """Who answers there, as ``https://example.com:443``."""
        host = f"[{self.host}]" if ":" in self.host else self.host.lower()
        return f"{self.scheme}://{host}:{self.port}"


def parse_target(url: str, field: str = "webhook_url") -> Target:
    """Take a URL apart, strictly. Raises TargetRefused naming ``field`` and never the URL, which may hold a secret."""

    def refuse(problem: str) -> TargetRefused:
        return TargetRefused(field, problem)

    if not 0 < len(url) <= MOST_CHARS:
        raise refuse(f"has {len(url):,} characters; give 1 to {MOST_CHARS:,}")
    if not _VISIBLE.match(url) or "\\" in url:
        raise refuse("holds characters that no URL has; write them as %XX, and a name as xn--…")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = parts.hostname or ""
    except ValueError:
        raise refuse("is no URL; give one as https://example.com/path") from None
    if parts.scheme not in ("http", "https") or not host:
        raise refuse("is no URL of the web; give one as https://example.com/path")
    if "@" in parts.netloc:
        raise refuse("holds a user or password; put a secret into its path or query")
    if "#" in url:
        raise refuse("holds a fragment (#…), which is never sent; leave it out")
    if port == 0:
        raise refuse("names port 0; leave it out or give 1 to 65535")
    if "%" in host or (_literal(host) is None and not _is_name(host)):
        raise refuse("names no host; give a name, or an address as 192.0.2.1 or [2001:db8::1]")
    resource = parts.path or "/"
    if parts.query:
        resource += f"?{parts.query}"
    return Target(parts.scheme, host, port or (443 if parts.scheme == "https" else 80), resource)


class Egress:
    """The rule: which addresses may be called. Without an allowed network, those of the open internet, by TLS."""

    def __init__(self, allowed: Sequence[Network] = (), resolve: Resolver | None = None) -> None:
        """allowed: networks that may be called though they are private, and without TLS."""
        self._allowed = tuple(allowed)
        self._resolve = resolve or _resolve

    def check(self, target: Target, field: str = "webhook_url") -> None:
        """Raise TargetRefused for what is known to be closed without resolving anything."""
        address = _literal(target.host)
        if address is not None:
            self._check(address, target, field)
        elif target.scheme == "http" and not self._allowed:
            raise TargetRefused(field, "is not encrypted; give an https:// URL")

    def addresses(self, target: Target, field: str = "webhook_url") -> list[str]:
        """Where to connect to, in order of preference: all of a name's addresses, each of which may be called.

        Blocks for as long as the resolver does. Raises TargetRefused, and OSError when the name has no address.
        """
        found = list(dict.fromkeys(self._resolve(target.host, target.port)))
        for text in found:
            address = _literal(text.partition("%")[0])
            if address is None or "%" in text:
                raise TargetRefused(field, "leads to an address of this machine's own link; it is not called")
            self._check(address, target, field)
        if not found:
            raise OSError("the name has no address")
        return found

    def _check(self, address: Address, target: Target, field: str) -> None:
        address = plain(address)
        if any(address in network for network in self._allowed):
            return
        if not is_open(address):
            raise TargetRefused(
                field, "leads into a private or reserved network; it is called only if FARM_WEBHOOKS__ALLOW has it"
            )
        if target.scheme == "http":
            raise TargetRefused(field, "is not encrypted; give an https:// URL")


def plain(address: Address) -> Address:
    """The address that is really meant: an IPv4 address inside an IPv6 one is taken out."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def is_open(address: Address) -> bool:
    """Whether an address belongs to the open internet: global, unicast, and no tunnel to something else."""
    address = plain(address)
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_V6:
        return False
    is_closed = any(address in network for network in _CLOSED if network.version == address.version)
    return address.is_global and not address.is_multicast and not address.is_reserved and not is_closed


def _literal(host: str) -> Address | None:
    """A host that is an address, in the one way of writing it that everybody reads alike."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_name(host: str) -> bool:
    """Whether a host is a name. 2130706433, 0x7f.1 and 127.1 are addresses to some resolvers, and no names."""
    return bool(_NAME.match(host)) and not _NUMBER.match(host.rstrip(".").rpartition(".")[2])


def _resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(info[4][0]) for info in found]
