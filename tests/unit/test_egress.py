"""Where the farm may call out to: no spelling of an address and no answer of a resolver leads into a closed network."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from farm.egress import Egress, TargetRefused, is_open, parse_target

pytestmark = pytest.mark.fast

# IANA's special-purpose registries, and multicast: written out here, so that they are checked and not repeated.
CLOSED_V4 = """
0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 192.88.99.0/24
192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
"""
CLOSED_V6 = """
::/128 ::1/128 64:ff9b:1::/48 100::/64 2001::/23 2001:db8::/32 2002::/16 3fff::/20 5f00::/16 fc00::/7 fe80::/10
fec0::/10 ff00::/8
"""
IN_CLOSED_V4 = st.sampled_from(CLOSED_V4.split()).flatmap(lambda network: st.ip_addresses(v=4, network=network))
IN_CLOSED_V6 = st.sampled_from(CLOSED_V6.split()).flatmap(lambda network: st.ip_addresses(v=6, network=network))
CLOSED = IN_CLOSED_V4 | IN_CLOSED_V6
OPEN = ("93.184.216.34", "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946", "2001:4860:4860::8888")


def egress(*addresses: str, allow: str = "") -> Egress:
    """A rule whose resolver answers with these."""
    networks = [ipaddress.ip_network(text) for text in allow.split()]
    return Egress(networks, resolve=lambda _host, _port: list(addresses))


@given(CLOSED)
def test_no_address_of_a_closed_network_is_called(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """Private, loopback, link-local, reserved, multicast: refused as a literal and as what a name resolves to."""
    host = f"[{address}]" if address.version == 6 else str(address)
    assert not is_open(address)
    with pytest.raises(TargetRefused):
        egress().check(parse_target(f"https://{host}/"))
    with pytest.raises(TargetRefused):
        egress(str(address)).addresses(parse_target("https://example.com/"))


@given(IN_CLOSED_V4, st.sampled_from(["::ffff:{}", "64:ff9b::{}", "::{}", "2002:{hex}::1", "64:ff9b:1::{}"]))
def test_an_ipv4_address_does_not_hide_in_ipv6(address: ipaddress.IPv4Address, form: str) -> None:
    """Mapped, translated, compatible or tunnelled: the address inside counts."""
    number = int(address)
    text = form.format(address, hex=f"{number >> 16:x}:{number & 0xFFFF:x}")
    with pytest.raises(TargetRefused):
        egress().check(parse_target(f"https://[{text}]/"))
    with pytest.raises(TargetRefused):
        egress(text).addresses(parse_target("https://example.com/"))


@given(st.lists(st.sampled_from(OPEN), max_size=3), CLOSED, st.integers(0, 3))
def test_one_closed_address_spoils_a_name(
    others: list[str], closed: ipaddress.IPv4Address | ipaddress.IPv6Address, place: int
) -> None:
    """A name that resolves to several addresses is refused if one of them is closed, wherever it stands."""
    found = [*others[:place], str(closed), *others[place:]]
    with pytest.raises(TargetRefused):
        egress(*found).addresses(parse_target("https://example.com/"))


@given(st.ip_addresses(v=4))
def test_other_ways_of_writing_an_ipv4_address_are_no_hosts(address: ipaddress.IPv4Address) -> None:
    """Decimal, octal, hexadecimal and shortened forms, which some resolvers read, are refused before one is asked."""
    number, (a, b, c, d) = int(address), address.packed
    forms = {
        str(number),
        hex(number),
        f"0{number:o}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"{a:#x}.{b:#x}.{c:#x}.{d:#x}",
        f"{a}.{number & 0xFFFFFF}",
        f"{a}.{b}.{number & 0xFFFF}",
        f"{a}.{b}.{c}.0{d:o}",
        f"{address}.",
    }
    for form in forms:
        try:
            target = parse_target(f"https://{form}/")
        except TargetRefused:
            continue
        # An octal form may be a usual one by chance, as 00.0.0.0 is not.
        assert target.host == str(address)


@given(st.text(min_size=1, max_size=60))
def test_whatever_is_given_is_a_url_or_refused(text: str) -> None:
    """A target's parts are clean, or there is none: no control characters, spaces, users or empty hosts get through."""
    for url in (text, f"https://{text}", f"https://example.com/{text}", f"https://{text}@127.0.0.1/"):
        try:
            target = parse_target(url)
        except TargetRefused:
            continue
        parts = target.scheme + target.host + target.resource
        assert target.scheme in ("http", "https")
        assert target.host
        assert parts.isascii()
        assert parts.isprintable()
        assert not set("\\ @#/") & set(target.host)
        assert "@" not in url.split("/")[2]


@pytest.mark.parametrize(
    "url",
    [
        "https://",
        "https:///path",
        "example.com",
        "ftp://example.com/",
        "file:///etc/passwd",
        "https://user:hunter2@example.com/",
        "https://example.com:0/",
        "https://example.com:99999/",
        "https://example.com/#part",
        "https://exa mple.com/",
        "https://example.com\\@127.0.0.1/",
        "https://ex\tample.com/",
        "https://münchen.de/",
        "https://[::1/",
        "https://[fe80::1%25eth0]/",
        "https://-example.com/",
        "https://example.com/" + "x" * 2048,
        "",
    ],
)
def test_what_is_no_plain_url_is_refused_without_being_repeated(url: str) -> None:
    """The error names the field; the URL may hold a secret."""
    with pytest.raises(TargetRefused) as refused:
        parse_target(url)
    assert refused.value.field == "webhook_url"
    assert "hunter2" not in str(refused.value)


def test_open_addresses_are_called_by_tls_only() -> None:
    """A name with open addresses gives them in the resolver's order; without TLS it is refused."""
    assert egress(*OPEN).addresses(parse_target("https://example.com/")) == list(OPEN)
    for scheme in ("http",):
        with pytest.raises(TargetRefused, match="not encrypted"):
            egress(*OPEN).addresses(parse_target(f"{scheme}://example.com/"))
        with pytest.raises(TargetRefused, match="not encrypted"):
            egress().check(parse_target(f"{scheme}://example.com/"))


@given(CLOSED)
def test_an_allowed_network_is_called_and_no_other(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    """What FARM_WEBHOOKS__ALLOW has may be called, also without TLS; everything else stays closed."""
    allowed = address in ipaddress.ip_network("10.1.0.0/16" if address.version == 4 else "fc00::/7")
    assume(address.version == 4 or address not in ipaddress.ip_network("::/96"))
    rule = egress(str(address), allow="10.1.0.0/16 fc00::/7")
    target = parse_target("http://receiver.internal/")
    if allowed:
        assert rule.addresses(target) == [str(address)]
    else:
        with pytest.raises(TargetRefused):
            rule.addresses(target)


def test_a_resolver_with_nothing_to_say_is_no_permission() -> None:
    """No address is an error of the look-up, and one with a zone is of this machine's own link."""
    target = parse_target("https://example.com/")
    with pytest.raises(OSError, match="no address"):
        egress().addresses(target)
    with pytest.raises(TargetRefused):
        egress("fe80::1%eth0").addresses(target)
    with pytest.raises(TargetRefused):
        egress("nonsense").addresses(target)


def test_an_allowed_address_may_come_inside_ipv6() -> None:
    """A resolver that maps IPv4 into IPv6 changes nothing about what is allowed."""
    rule = egress("::ffff:10.1.2.3", allow="10.1.0.0/16")
    assert rule.addresses(parse_target("http://receiver.internal/")) == ["::ffff:10.1.2.3"]
