"""Who may talk to whom: the edges of the architecture and no other, worked out of the NetworkPolicies."""

from __future__ import annotations

import ipaddress
import itertools
from dataclasses import dataclass

import pytest

from tests.k8s.manifests import EVERYTHING, Build, Object, build, selects

HOME = "bloomfarm"
PORTS = (53, 443, 5555, 6379, 8000, 8080, 9121, 15012, 15020, 26379)
FARM = {"api", "worker", "system", "flower"}


@dataclass(frozen=True)
class Peer:
    """One end of a connection: a pod with its labels and its namespace's, or an address outside."""

    name: str
    namespace: str = HOME
    labels: tuple[tuple[str, str], ...] = ()
    namespace_labels: tuple[tuple[str, str], ...] = ()
    address: str | None = None


def _outsider(name: str, namespace: str, labels: dict[str, str], **about: str) -> Peer:
    about = {"kubernetes.io/metadata.name": namespace, **{key.replace("__", "/"): text for key, text in about.items()}}
    return Peer(name, namespace, tuple(labels.items()), tuple(about.items()))


OUTSIDERS = (
    _outsider("dns", "kube-system", {"k8s-app": "kube-dns"}),
    _outsider("prometheus", "monitoring", {"app.kubernetes.io/name": "prometheus"}),
    _outsider("grafana", "monitoring", {"app.kubernetes.io/name": "grafana"}),
    _outsider("gateway", "istio-ingress", {"istio": "ingressgateway"}),
    _outsider("istiod", "istio-system", {"app": "istiod"}),
    _outsider("producer", "shop", {"app": "shop"}, **{"bloomfarm/producers": "true"}),
    _outsider("api-client", "web", {"app": "web"}, **{"bloomfarm/api-clients": "true"}),
    _outsider("stranger", "elsewhere", {"component": "worker"}),
    Peer("internet", "", address="8.8.8.8"),
    Peer("metadata", "", address="169.254.169.254"),
    Peer("ack-metadata", "", address="100.100.100.200"),
    Peer("intranet", "", address="10.1.2.3"),
)


def _peers(made: Build) -> list[Peer]:
    home = (("kubernetes.io/metadata.name", HOME),)
    inside = {(w.component, tuple(w.labels.items())): w for w in made.workloads()}
    return [*(Peer(component, HOME, labels, home) for component, labels in inside), *OUTSIDERS]


def _matches(rule: Object, other: Peer) -> bool:
    if block := rule.get("ipBlock"):
        if other.address is None:
            return False
        address = ipaddress.ip_address(other.address)
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in ipaddress.ip_network(hole) for hole in block.get("except", [])
        )
    if other.address is not None:
        return False
    if "namespaceSelector" in rule:
        if not selects(rule["namespaceSelector"], dict(other.namespace_labels)):
            return False
    elif other.namespace != HOME:
        return False
    return "podSelector" not in rule or selects(rule["podSelector"], dict(other.labels))


def _lets(policies: list[Object], direction: str, here: Peer, other: Peer, port: int) -> bool:
    """Whether the policies of one end allow a connection. Ends outside the namespace are none of ours."""
    if here.namespace != HOME:
        return True
    side = {"Ingress": "from", "Egress": "to"}[direction]
    ours = [
        policy["spec"]
        for policy in policies
        if direction in policy["spec"]["policyTypes"] and selects(policy["spec"]["podSelector"], dict(here.labels))
    ]
    assert ours, f"nothing denies {here.name} by default"
    return any(
        any(_matches(peer, other) for peer in rule[side]) and port in {entry["port"] for entry in rule["ports"]}
        for spec in ours
        for rule in spec.get(direction.lower(), [])
    )


def edges(made: Build) -> set[tuple[str, str, int]]:
    """All connections that are possible, as (from, to, port)."""
    policies, peers = made.of("NetworkPolicy"), _peers(made)
    return {
        (source.name, target.name, port)
        for source, target in itertools.permutations(peers, 2)
        for port in PORTS
        if HOME in (source.namespace, target.namespace)
        and _lets(policies, "Egress", source, target, port)
        and _lets(policies, "Ingress", target, source, port)
    } | {
        # A workload's pods among themselves.
        (peer.name, peer.name, port)
        for peer in peers
        for port in PORTS
        if peer.namespace == HOME
        and _lets(policies, "Egress", peer, peer, port)
        and _lets(policies, "Ingress", peer, peer, port)
    }


PLAIN = (
    {(part, "redis", 6379) for part in FARM}
    | {(part, "dns", 53) for part in {*FARM, "redis"}}
    | {("producer", "redis", 6379), ("api-client", "api", 8000), ("system", "internet", 443)}
)
WEIGHTS = {("weights", "internet", 443), ("weights", "dns", 53)}
MONITORING = {("prometheus", part, 8080) for part in ("api", "worker", "system")} | {
    ("prometheus", "monitor", 9121),
    ("monitor", "redis", 6379),
    ("monitor", "dns", 53),
}
HA = {(part, "sentinel", 26379) for part in {*FARM, "redis", "sentinel", "producer"}} | {
    ("redis", "redis", 6379),
    ("sentinel", "redis", 6379),
    ("sentinel", "dns", 53),
}


def _istio(parts: set[str]) -> set[tuple[str, str, int]]:
    proxies = {(part, "istiod", 15012) for part in parts}
    scrapes = {(source, part, 15020) for part in parts for source in ("prometheus", "grafana")}
    return proxies | scrapes | {("gateway", "api", 8000)}


@pytest.mark.parametrize(
    ("overlay", "components", "expected"),
    [
        ("local", (), PLAIN),
        ("gpu", (), PLAIN | WEIGHTS),
        ("ack", (), PLAIN | WEIGHTS),
        ("local", ("monitoring",), PLAIN | MONITORING),
        ("local", ("redis-ha",), PLAIN | HA),
        ("local", ("istio",), PLAIN | _istio({*FARM, "redis"})),
        (
            "gpu",
            EVERYTHING,
            PLAIN | WEIGHTS | MONITORING | HA | _istio({*FARM, "redis", "monitor", "sentinel", "weights"}),
        ),
    ],
    ids=["local", "gpu", "ack", "monitoring", "redis-ha", "istio", "everything"],
)
def test_only_the_edges_of_the_architecture(
    overlay: str, components: tuple[str, ...], expected: set[tuple[str, str, int]]
) -> None:
    """The policies allow these connections and no other: not worker to worker, not to the metadata of the cloud."""
    assert edges(build(overlay, components)) == expected


def test_the_node_dns_cache_of_ack() -> None:
    """On ACK, pods may also ask the DNS cache of their node, which is an address and no pod."""
    [policy] = [p for p in build("ack").of("NetworkPolicy") if p["metadata"]["name"] == "dns"]
    assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in policy["spec"]["egress"][0]["to"]
