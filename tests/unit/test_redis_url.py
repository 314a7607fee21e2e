"""URLs of servers: what they may be, what Celery makes of them, and what messages say of them."""

from __future__ import annotations

import pytest

from farm.broker import celery_server, make_app
from farm.connection import address
from farm.errors import SettingsError
from farm.redis_url import SentinelUrl, sentinel_url, tls_options, where
from farm.settings import load_settings

pytestmark = pytest.mark.fast

FULL = "redis+sentinel://ann:p%40ss@h1:26379,h2,[::1]:7000/barn/3?sentinel_username=sam&sentinel_password=watch%21"


def test_a_sentinel_url_names_sentinels_service_and_database() -> None:
    """User and password are the server's; Sentinels have their own; a port left out is 26379."""
    assert sentinel_url(FULL) == SentinelUrl(
        (("h1", 26379), ("h2", 26379), ("::1", 7000)), "barn", 3, "ann", "p@ss", "sam", "watch!"
    )
    assert sentinel_url("redis+sentinel://h1/barn") == SentinelUrl((("h1", 26379),), "barn")
    assert sentinel_url("redis://h1/0") is None


def test_tls_checks_certificates_unless_told_otherwise() -> None:
    """rediss and rediss+sentinel take the driver's ssl_ options."""
    assert tls_options("redis://h1") is None
    assert tls_options("rediss://h1") == {"ssl_cert_reqs": "required"}
    url = "rediss+sentinel://h1/barn?ssl_ca_certs=/ca.pem&ssl_check_hostname=false"
    wanted = {"ssl_cert_reqs": "required", "ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False}
    parts = sentinel_url(url)
    assert parts is not None
    assert parts.tls == tls_options(url) == wanted


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://h1", "scheme 'http' is unknown"),
        ("redis://h1:port/0", "is no URL"),
        ("redis+sentinel://h1:26379", "names hosts and a service"),
        ("redis+sentinel:///barn", "names hosts and a service"),
        ("redis+sentinel://h1:port/barn", "'h1:port' is no Sentinel"),
        ("redis+sentinel://h1/barn/first", "'first' is no database"),
        ("redis+sentinel://h1/barn?sentinel_pasword=x", "option 'sentinel_pasword' is unknown"),
    ],
)
def test_a_url_that_makes_no_sense_is_refused_with_a_reason(url: str, said: str) -> None:
    """The message names the setting and what is wrong."""
    settings = load_settings(redis={"url": url})
    for use in (lambda: where(url), lambda: make_app(settings), lambda: address(settings.redis)):
        with pytest.raises(SettingsError, match=said) as error:
            use()
        assert str(error.value).startswith("FARM_REDIS__URL")


def test_messages_say_where_without_passwords() -> None:
    """A service is named with its Sentinels."""
    assert where(FULL) == "barn (Sentinels h1:26379, h2:26379, ::1:7000)"
    assert where("rediss://:hush@h1/0") == "h1:6379"
    assert where("unix://:hush@/run/redis.sock?db=1") == "/run/redis.sock"
    assert "hush" not in repr(sentinel_url("redis+sentinel://:hush@h1/barn?sentinel_password=hush"))


def test_celery_is_told_the_same_server() -> None:
    """Celery has URLs of its own for Sentinels and sockets, and takes TLS as settings."""
    server = celery_server(FULL, timeout_s=2)
    login = "ann:p%40ss@"
    assert server.url == f"sentinel://{login}h1:26379/3;sentinel://{login}h2:26379/3;sentinel://{login}[::1]:7000/3"
    assert server.options["master_name"] == "barn"
    asking = server.options["sentinel_kwargs"]
    assert (asking["username"], asking["password"], asking["socket_timeout"]) == ("sam", "watch!", 0.5)
    assert celery_server("redis://:x@h1:7/2", 2).url == "redis://:x@h1:7/2"
    assert celery_server("unix://:x@/run/r.sock?db=1", 2).url == "redis+socket://:x@/run/r.sock?virtual_host=1"
    secure = celery_server("rediss://h1/0?ssl_ca_certs=/ca.pem", 2)
    assert (secure.url, secure.tls) == ("rediss://h1/0", {"ssl_cert_reqs": "required", "ssl_ca_certs": "/ca.pem"})


def test_a_broker_of_its_own_may_be_any_of_them() -> None:
    """FARM_BROKER__URL takes the same URLs, and is named where it is wrong."""
    app = make_app(load_settings(redis={"url": "redis://h1/0"}, broker={"url": "redis+sentinel://h2/barn"}))
    assert app.conf.broker_url == "sentinel://h2:26379/0"
    with pytest.raises(SettingsError, match=r"^FARM_BROKER__URL: scheme 'http'"):
        make_app(load_settings(redis={"url": "redis://h1/0"}, broker={"url": "http://h2"}))


@pytest.mark.parametrize("url", ["redis://h1/0", "rediss://h1/0", "unix:///run/r.sock", "redis+sentinel://h1/barn"])
def test_celery_takes_what_it_is_told(url: str) -> None:
    """The app has a broker connection and a result backend for every kind of URL."""
    app = make_app(load_settings(redis={"url": url}))
    with app.connection() as connection:
        assert connection.transport.driver_type == "redis"
    assert app.backend.connparams
