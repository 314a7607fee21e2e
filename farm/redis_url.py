"""What the URLs of servers say, in parts, and what may be said of them: never a password.

    redis://[user:password@]host[:6379][/db]        one server; rediss:// with TLS, unix:// through a socket file
    redis+sentinel://[user:password@]host[:26379],host[:26379]/service[/db]
                                                    whichever server the Sentinels call the service's master;
                                                    rediss+sentinel:// with TLS, to the Sentinels too

The user and password are the server's. Sentinels that want one are given ``?sentinel_password=`` (and
``sentinel_username=``). TLS takes ``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile`` (paths), ``ssl_cert_reqs`` and
``ssl_check_hostname``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from farm.errors import SettingsError

SETTING = "FARM_REDIS__URL"
DIRECT = ("redis", "rediss", "unix")
SENTINEL = ("redis+sentinel", "rediss+sentinel")
SCHEMES = DIRECT + SENTINEL
PORT, SENTINEL_PORT = 6379, 26379
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """A service that Sentinels watch over. ``tls`` holds the ``ssl_`` options, None without TLS."""

    sentinels: tuple[tuple[str, int], ...]
    service: str
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    tls: dict[str, str | bool] | None = None

    @property
    def where(self) -> str:
        """The service and its Sentinels for messages."""
        return f"{self.service} (Sentinels {', '.join(f'{host}:{port}' for host, port in self.sentinels)})"


def sentinel_url(url: str, setting: str = SETTING) -> SentinelUrl | None:
    """The parts of a Sentinel URL; None for a server's own.

    setting: what an error calls it. Raises SettingsError for a URL that makes no sense.
    """
    parts = _split(url, setting)
    if parts.scheme not in SENTINEL:
        return None
    login, _, hosts = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    service, _, db = parts.path.strip("/").partition("/")
    options = dict(parse_qsl(parts.query))
    if not service or not hosts:
        raise SettingsError(
            f"{setting}: a Sentinel URL names hosts and a service: redis+sentinel://host:26379,host:26379/mymaster"
        )
    if db and not db.isdecimal():
        raise SettingsError(f"{setting}: {db[:20]!r} is no database; give its number after the service")
    if unknown := sorted(options.keys() - {*_TLS_OPTIONS, *_SENTINEL_OPTIONS}):
        raise SettingsError(
            f"{setting}: option {unknown[0]!r} is unknown; use {', '.join((*_SENTINEL_OPTIONS, *_TLS_OPTIONS))}"
        )
    return SentinelUrl(
        sentinels=tuple(_host_and_port(host, setting) for host in hosts.split(",") if host),
        service=unquote(service),
        db=int(db or 0),
        username=unquote(username) or None,
        password=unquote(password) or None,
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
        tls=_tls_options(options) if parts.scheme == "rediss+sentinel" else None,
    )


def checked(url: str) -> str:
    """The URL of a server, as it is. Raises SettingsError for one that makes no sense."""
    _split(url, SETTING)
    return url


def tls_options(url: str, setting: str = SETTING) -> dict[str, str | bool] | None:
    """The ``ssl_`` options of a URL, certificates being checked unless it says otherwise; None without TLS."""
    parts = _split(url, setting)
    return _tls_options(dict(parse_qsl(parts.query))) if parts.scheme.startswith("rediss") else None


def where(url: str) -> str:
    """Where a server is, for messages, without credentials."""
    if (sentinel := sentinel_url(url)) is not None:
        return sentinel.where
    parts = _split(url, SETTING)
    return parts.path if parts.scheme == "unix" else f"{parts.hostname}:{parts.port or PORT}"


def _split(url: str, setting: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        if parts.scheme in DIRECT:
            parts.port  # noqa: B018 (raises for a port that is none)
    except ValueError:
        raise SettingsError(f"{setting} is no URL; give redis://host:6379/0") from None
    if parts.scheme not in SCHEMES:
        raise SettingsError(f"{setting}: scheme {parts.scheme!r} is unknown; use one of {', '.join(SCHEMES)}")
    return parts


def _host_and_port(text: str, setting: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host = text
    if not host or (colon and not port.isdecimal()):
        raise SettingsError(f"{setting}: {text[:80]!r} is no Sentinel; give host:26379")
    return host.strip("[]"), int(port) if colon else SENTINEL_PORT


def _tls_options(options: dict[str, str]) -> dict[str, str | bool]:
    chosen: dict[str, str | bool] = {"ssl_cert_reqs": "required"}
    for name in _TLS_OPTIONS:
        if name in options:
            text = options[name]
            chosen[name] = text.lower() not in ("false", "no", "0") if name == "ssl_check_hostname" else text
    return chosen
