"""The mesh: routes lead to what exists, retries submit nothing twice, and only known identities get in."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.k8s.manifests import Build, Object, build, selects

# What a proxy may repeat whatever the request is: no application has seen it.
UNSEEN = {"connect-failure", "refused-stream", "reset-before-request"}


@pytest.fixture(scope="module")
def mesh() -> Build:
    return build("gpu", ("istio", "monitoring", "redis-ha"))


def _routes(mesh: Build) -> list[Object]:
    found: list[Object] = mesh.one("VirtualService", "bloomfarm")["spec"]["http"]
    return found


def _first(mesh: Build, method: str, path: str, **headers: str) -> Object:
    """The route that takes a request."""
    for route in _routes(mesh):
        if "match" not in route or any(_takes(match, method, path, headers) for match in route["match"]):
            return route
    raise AssertionError("no route takes it")


def _takes(match: Object, method: str, path: str, headers: dict[str, str]) -> bool:
    wanted = [(match.get("method"), method), (match.get("uri"), path)]
    wanted += [(rule, headers.get(name.replace("-", "_"))) for name, rule in match.get("headers", {}).items()]
    return all(rule is None or (text is not None and _equals(rule, text)) for rule, text in wanted)


def _equals(rule: dict[str, str], text: str) -> bool:
    [(kind, value)] = rule.items()
    return {"exact": text == value, "prefix": text.startswith(value), "regex": bool(re.fullmatch(value, text))}[kind]


def _retry_on(route: Object) -> set[str]:
    return set(route["retries"]["retryOn"].split(",")) if route["retries"]["attempts"] else set()


def test_routes_lead_to_hosts_and_subsets_that_exist(mesh: Build) -> None:
    """Every destination is a Service and a port of it, every subset is declared and has pods, weights make 100."""
    services = {found["metadata"]["name"]: found for found in mesh.of("Service")}
    rules = {found["spec"]["host"]: found for found in mesh.of("DestinationRule")}
    for route in _routes(mesh):
        targets = route["route"]
        assert sum(target.get("weight", 100) for target in targets) == 100
        for target in targets:
            destination = target["destination"]
            service = services[destination["host"]]
            assert destination["port"]["number"] in {port["port"] for port in service["spec"]["ports"]}
            [subset] = [s for s in rules[destination["host"]]["spec"]["subsets"] if s["name"] == destination["subset"]]
            wanted = {**service["spec"]["selector"], **subset["labels"]}
            assert [w for w in mesh.workloads() if selects({"matchLabels": wanted}, w.labels)], subset["name"]
    assert set(rules) <= set(services)


def test_the_gateway_serves_the_routes_hosts(mesh: Build) -> None:
    """The VirtualService is bound to the Gateway and to a host of it; plain HTTP is sent to HTTPS."""
    gateway, routes = mesh.one("Gateway", "bloomfarm"), mesh.one("VirtualService", "bloomfarm")
    assert {"bloomfarm", "mesh"} == set(routes["spec"]["gateways"])
    for server in gateway["spec"]["servers"]:
        assert set(server["hosts"]) <= set(routes["spec"]["hosts"])
        assert server["tls"].get("httpsRedirect") or server["tls"]["credentialName"]


def test_a_submit_is_never_made_twice(mesh: Build) -> None:
    """A POST is repeated after it may have been seen only when it carries an Idempotency-Key; every route says so."""
    assert all("retries" in route for route in _routes(mesh)), "Istio's default repeats on 503"
    for path in ("/v1/jobs", "/v1/completions", "/v1/batches", "/v1/files", "/v1/jobs/x/cancel"):
        assert _retry_on(_first(mesh, "POST", path)) <= UNSEEN, path
        assert _retry_on(_first(mesh, "POST", path, x_farm_canary="true", idempotency_key="k")) <= UNSEEN
    assert "reset" in _retry_on(_first(mesh, "POST", "/v1/jobs", idempotency_key="order-7"))
    assert "reset" in _retry_on(_first(mesh, "GET", "/v1/jobs/x"))


def test_answers_may_take_as_long_as_they_take(mesh: Build) -> None:
    """Event streams and streamed completions have no time limit in the mesh; everything else has one."""
    for method, path in (("GET", "/v1/jobs/0192/events"), ("POST", "/v1/completions")):
        assert _first(mesh, method, path)["timeout"] == "0s"
    assert _first(mesh, "GET", "/v1/jobs/0192")["timeout"] == "90s"


def test_a_header_leads_to_the_canary(mesh: Build) -> None:
    """x-farm-canary: true goes to the canary alone; nobody else's request does."""
    [target] = _first(mesh, "POST", "/v1/jobs", x_farm_canary="true")["route"]
    assert target["destination"]["subset"] == "canary"
    others = [t["destination"]["subset"] for r in _routes(mesh) if r["name"] != "canary" for t in r["route"]]
    assert set(others) == {"main", "backup"}


def test_each_pool_fails_over_to_the_other(mesh: Build) -> None:
    """Both subsets hold the APIs of both pools, prefer their own, and eject what can't be reached."""
    rule = mesh.one("DestinationRule", "bloom7b1-inference-any")["spec"]
    apis = [w for w in mesh.workloads() if w.component == "api"]
    for name in ("main", "backup"):
        [subset] = [s for s in rule["subsets"] if s["name"] == name]
        assert {w.labels["pool"] for w in apis if selects({"matchLabels": subset["labels"]}, w.labels)} == {
            "main",
            "backup",
        }
        policy = subset["trafficPolicy"]
        assert policy["loadBalancer"]["localityLbSetting"]["failoverPriority"] == [f"pool={name}"]
        # Without outlier detection priorities have no effect; a pool must be able to go altogether.
        assert policy["outlierDetection"]["consecutiveLocalOriginFailures"] > 0
        assert policy["outlierDetection"]["maxEjectionPercent"] == 100
        assert policy["connectionPool"]["tcp"]["maxConnections"] > 0


def test_mutual_tls_is_strict(mesh: Build) -> None:
    """Plain text is taken on metrics' ports alone, Redis and Sentinels are called with mutual TLS."""
    policies = {found["metadata"]["name"]: found["spec"] for found in mesh.of("PeerAuthentication")}
    assert all(spec["mtls"] == {"mode": "STRICT"} for spec in policies.values())
    open_ports = {port for spec in policies.values() for port in spec.get("portLevelMtls", {})}
    metrics = {str(w.ports["metrics"]) for w in mesh.workloads() if "metrics" in w.ports}
    assert open_ports == metrics
    for host in ("redis", "redis-sentinel"):
        assert mesh.one("DestinationRule", host)["spec"]["trafficPolicy"]["tls"] == {"mode": "ISTIO_MUTUAL"}


def _allowed(
    mesh: Build, component: str, port: int, account: str, path: str = "/", namespace: str = "bloomfarm"
) -> bool:
    """Whether an identity may call a workload's port: something must allow it, since an empty policy allows nothing."""
    workload = next(w for w in mesh.workloads() if w.component == component)
    found = False
    for policy in mesh.of("AuthorizationPolicy"):
        spec = policy["spec"]
        if "selector" in spec and not selects(spec["selector"], workload.labels):
            continue
        found = found or any(_rule_takes(rule, port, account, path, namespace) for rule in spec.get("rules", []))
    return found


def _rule_takes(rule: Object, port: int, account: str, path: str, namespace: str) -> bool:
    def source(entry: Any) -> bool:
        accounts = entry["source"].get("serviceAccounts")
        names = entry["source"].get("namespaces")
        return (accounts is None or (account in accounts and namespace == "bloomfarm")) and (
            names is None or namespace in names
        )

    def operation(entry: Any) -> bool:
        wanted = entry["operation"]
        return str(port) in wanted["ports"] and path in wanted.get("paths", [path])

    return (not rule.get("from") or any(map(source, rule["from"]))) and any(map(operation, rule["to"]))


def test_only_known_identities_get_in(mesh: Build) -> None:
    """The gateway reaches APIs, the farm's parts Redis and Sentinels, anyone metrics, and nobody anything else."""
    assert mesh.one("AuthorizationPolicy", "nothing")["spec"] == {}
    for account in ("api", "worker", "system", "flower", "monitor", "redis", "sentinel"):
        assert _allowed(mesh, "redis", 6379, account)
    assert not _allowed(mesh, "redis", 6379, "weights")
    assert not _allowed(mesh, "redis", 6379, "worker", namespace="elsewhere")
    assert not _allowed(mesh, "sentinel", 26379, "monitor")
    assert _allowed(mesh, "api", 8000, "ingress", namespace="istio-ingress")
    assert not _allowed(mesh, "api", 8000, "worker")
    assert _allowed(mesh, "worker", 8080, "anyone", "/metrics", namespace="monitoring")
    assert not _allowed(mesh, "worker", 8080, "anyone", "/readyz", namespace="monitoring")
    assert not _allowed(mesh, "flower", 5555, "api")


def test_identities_are_service_accounts_that_exist(mesh: Build) -> None:
    """Every identity in a policy is a service account of the manifests."""
    accounts = {found["metadata"]["name"] for found in mesh.of("ServiceAccount")}
    named = {
        name
        for policy in mesh.of("AuthorizationPolicy")
        for rule in policy["spec"].get("rules", [])
        for entry in rule.get("from", [])
        for name in entry["source"].get("serviceAccounts", [])
    }
    assert named <= accounts


def test_proxies_start_first_and_jobs_have_none(mesh: Build) -> None:
    """Applications start when their proxy is up; the weights' Job has none, or it would never end."""
    for workload in mesh.workloads():
        if workload.kind == "Job":
            assert workload.labels["sidecar.istio.io/inject"] == "false"
        else:
            annotations = workload.template["metadata"]["annotations"]
            assert "holdApplicationUntilProxyStarts" in annotations["proxy.istio.io/config"]
