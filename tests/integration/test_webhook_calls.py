"""One call of a webhook, with a resolver of the test's own: which address is called, and what counts as told."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_network
from typing import Any

import trustme

from farm.egress import Egress
from tests.receiver import Receiver
from workers.system.calling import Called, Caller


def call(url: str, resolve: Callable[[str, int], list[str]], **more: Any) -> Called:
    with ThreadPoolExecutor(2) as threads:
        egress = Egress([ip_network("127.0.0.1/32")], resolve)
        return asyncio.run(Caller(egress, threads, 2.0, **more).post(url, {"x-a": "b"}, b"{}"))


def test_the_address_that_was_checked_is_the_one_called() -> None:
    """A name that resolves to another address a moment later is called where it was checked: it is resolved once."""
    asked: list[str] = []

    def rebinding(host: str, _port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    with Receiver() as receiver:
        url = f"http://receiver.test:{receiver.port}/a/b?c=d"
        assert call(url, rebinding) == Called(204)
        [got] = receiver.got
    assert asked == ["receiver.test"]
    assert (got.path, got.headers["host"]) == ("/a/b?c=d", f"receiver.test:{receiver.port}")


def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    """All of a name's addresses were checked, so any will do."""
    loopback = ipaddress.ip_network("127.0.0.0/8")
    with Receiver() as receiver, ThreadPoolExecutor(2) as threads:
        egress = Egress([loopback], lambda _host, _port: ["127.0.0.9", "127.0.0.1"])
        caller = Caller(egress, threads, 5.0)
        assert asyncio.run(caller.post(f"http://receiver.test:{receiver.port}/", {}, b"{}")) == Called(204)


def test_certificates_are_checked_for_the_name(tmp_path: Any) -> None:
    """TLS speaks of the name in the URL, though an address is called: a certificate for another name is refused."""
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("receiver.test").configure_cert(tls)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with Receiver(tls=tls) as receiver:

        def here(_host: str, _port: int) -> list[str]:
            return ["127.0.0.1"]

        assert call(f"https://receiver.test:{receiver.port}/", here, tls=trusting) == Called(204)
        refused = Called(None, "its certificate is not trusted")
        assert call(f"https://other.test:{receiver.port}/", here, tls=trusting) == refused
        assert call(f"https://receiver.test:{receiver.port}/", here) == refused
        assert len(receiver.got) == 1


def test_what_is_no_http_is_no_success() -> None:
    """A receiver that answers in another way, or hangs up, or is not there, or has no address, has not been told."""

    def babble(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"220 mail.example ESMTP\r\n")

    with Receiver(answer=babble) as receiver, Receiver(answer=lambda _: None) as mute:
        babbled = call(receiver.url, lambda _host, _port: ["127.0.0.1"])
        hung_up = call(mute.url, lambda _host, _port: ["127.0.0.1"])
    gone = call(receiver.url, lambda _host, _port: ["127.0.0.1"])
    nowhere = call("https://receiver.test/", lambda _host, _port: [])
    assert {one.status for one in (babbled, hung_up, gone, nowhere)} == {None}
    assert babbled.error == hung_up.error == "the answer broke off or is no HTTP"
    assert (gone.error, nowhere.error) == ("no connection", "its name has no address")
