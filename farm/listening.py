"""Where servers of the farm listen: who reaches an address, whether it is free, how it is written."""

from __future__ import annotations

import ipaddress
import socket

from farm.errors import SettingsError


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int, setting: str) -> socket.socket:
    """A socket bound to an address; port 0 is any free one. Close it, or hand it to whoever serves.

    setting: what names the port, as FARM_API__PORT. Raises SettingsError when the address can't be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"{host}:{port} can't be used ({error.strerror}); choose another with --port or {setting}"
        ) from None
    return listener


def url_of(host: str, port: int) -> str:
    """The address of a web server for programs on this machine."""
    if host in ("0.0.0.0", "::"):  # noqa: S104
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
