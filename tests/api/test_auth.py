"""Keys, scopes and tenants: who may ask for what, on every path that there is."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import httpx2
import pytest
from fastapi.routing import APIRoute

from api import auth
from api.app import create_app
from farm.errors import SettingsError
from farm.ledger.jobs import Jobs
from farm.ledger.keyring import Keyring
from farm.listening import is_loopback
from farm.local.environ import with_values
from farm.rest import check_exposure, with_keys
from farm.settings import Settings, load_settings
from tests.farmhand import Farmhand

NOBODYS = "0ffff0c1-0000-7000-8000-000000000000"
Key = Callable[..., dict[str, str]]


def paths(settings: Settings) -> list[tuple[str, str]]:
    """Every method and path that there is."""
    routes = [route for route in create_app(settings).routes if isinstance(route, APIRoute)]
    return sorted((method, route.path) for route in routes for method in route.methods)


def filled(path: str, value: str = "x") -> str:
    """A path with a value in place of each of its parameters."""
    return re.sub(r"\{[^}]+\}", value, path)


async def test_every_path_wants_a_key(keyed: httpx2.AsyncClient, api_settings: Settings, jobs: Jobs) -> None:
    """All that touches jobs is closed to those without a key, with a wrong one, or with one of another scheme."""
    closed = [(method, path) for method, path in paths(api_settings) if path.startswith(("/v1/", "/metrics"))]
    assert len(closed) >= 5
    for method, path in closed:
        for value in ("", "Bearer", "Bearer ", "Basic Ym9iOmJvYg==", "bf_" + "x" * 43, "Bearer bf_" + "x" * 43):
            headers = {"Authorization": value} if value else {}
            answer = await keyed.request(method, filled(path), headers=headers, json={"prompt": "x"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"].startswith("Bearer")
    pages = set(paths(api_settings)) - set(closed)
    assert {("GET", "/livez"), ("GET", "/readyz"), ("GET", "/docs"), ("GET", "/openapi.json")} <= pages
    assert {method for method, _ in pages} == {"GET"}
    for _, path in pages:
        assert (await keyed.get(filled(path, "swagger-ui.css"))).status_code in (200, 307, 404)
    assert jobs.client.keys("{farm}:job:*") == []


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def test_no_path_shows_another_tenants_job(
    keyed: httpx2.AsyncClient, key: Key, api_settings: Settings, hand: Farmhand, jobs: Jobs
) -> None:
    """Read, listed, followed, cancelled: on every path with a job's id, another's job is a job that is not there."""
    ann, ben = key("ann"), key("ben")
    done, waiting = [
        (await keyed.post("/v1/jobs", json={"prompt": f"secret {n}", "max_tokens": 2}, headers=ann)).json()["id"]
        for n in range(2)
    ]
    with hand:
        await keyed.get(f"/v1/jobs/{done}", params={"wait": 20}, headers=ann)
    waiting = (await keyed.post("/v1/jobs", json={"prompt": "secret"}, headers=ann)).json()["id"]
    with_id = [(method, path) for method, path in paths(api_settings) if "{job_id}" in path]
    assert len(with_id) >= 3
    for method, path in with_id:
        for job in (done, waiting):
            theirs = await keyed.request(method, filled(path, job), headers=ben)
            nobodys = await keyed.request(method, filled(path, NOBODYS), headers=ben)
            assert theirs.status_code == nobodys.status_code == 404
            assert theirs.text.replace(job, "") == nobodys.text.replace(NOBODYS, "")
    assert (await keyed.get("/v1/jobs", headers=ben)).json() == {"jobs": [], "next": None}
    assert len((await keyed.get("/v1/jobs", headers=ann)).json()["jobs"]) == 3
    assert jobs.view(waiting).state == "queued"


async def test_an_idempotency_key_is_its_tenants_own(keyed: httpx2.AsyncClient, key: Key) -> None:
    """The same key of two tenants is two jobs: neither learns that the other used it."""
    same = {"Idempotency-Key": "order-7"}
    answers = [
        await keyed.post("/v1/jobs", json={"prompt": prompt}, headers={**key(tenant), **same})
        for tenant, prompt in (("ann", "A goat"), ("ben", "A hen"), ("ann", "A goat"))
    ]
    assert [answer.status_code for answer in answers] == [202, 202, 202]
    first, second, third = (answer.json()["id"] for answer in answers)
    assert first != second
    assert first == third


async def test_a_job_is_its_keys_tenants(keyed: httpx2.AsyncClient, key: Key, jobs: Jobs) -> None:
    """Whose a job is follows from the key, whatever the body says."""
    job = (await keyed.post("/v1/jobs", json={"prompt": "A goat"}, headers=key("ann"))).json()["id"]
    assert jobs.view(job).tenant == "ann"
    forged = await keyed.post("/v1/jobs", json={"prompt": "A goat", "tenant": "ben"}, headers=key("ann"))
    assert (forged.status_code, forged.json()["error"]["param"]) == (400, "tenant")


async def test_scopes_hold(keyed: httpx2.AsyncClient, key: Key, jobs: Jobs) -> None:
    """A key that may only read neither submits nor cancels; one that may only submit sees nothing."""
    reads, submits = key("ann", scopes=["read"]), key("ann", scopes=["submit"])
    job = (await keyed.post("/v1/jobs", json={"prompt": "A goat"}, headers=submits)).json()["id"]
    for method, path, headers, status in (
        ("POST", "/v1/jobs", reads, 403),
        ("POST", f"/v1/jobs/{job}/cancel", reads, 403),
        ("GET", f"/v1/jobs/{job}", submits, 403),
        ("GET", f"/v1/jobs/{job}/events", submits, 403),
        ("GET", "/v1/jobs", submits, 403),
        ("GET", f"/v1/jobs/{job}", reads, 200),
        ("POST", f"/v1/jobs/{job}/cancel", submits, 200),
    ):
        body = {"prompt": "x"} if path == "/v1/jobs" else None
        answer = await keyed.request(method, path, headers=headers, json=body)
        assert answer.status_code == status, (method, path)
        if status == 403:
            assert answer.json()["error"]["code"] == "insufficient_scope"


async def test_a_revoked_key_is_closed_within_seconds(
    keyed: httpx2.AsyncClient, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known of a key is asked for again: within 5 s of its end it opens nothing."""
    assert auth.REMEMBER_S < 5
    monkeypatch.setattr(auth, "REMEMBER_S", 0.3)
    made = Keyring(jobs).create("ann")
    assert (await keyed.get("/v1/jobs", headers=bearer(made.secret))).status_code == 200
    assert Keyring(jobs).revoke(made.id)
    deadline = time.monotonic() + 5
    while (answer := await keyed.get("/v1/jobs", headers=bearer(made.secret))).status_code == 200:
        assert time.monotonic() < deadline
    assert answer.status_code == 401


async def test_a_tenants_rate_holds(keyed: httpx2.AsyncClient, key: Key) -> None:
    """Over its requests per second a tenant is told how many it may have and when; others are not held up."""
    ann, ben = key("ann", limits={"requests_per_s": 0.1, "burst": 3}), key("ben")
    answers = [await keyed.get("/v1/jobs", headers=ann) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
    assert {answer.headers["x-ratelimit-limit-requests"] for answer in answers[:3]} == {"3"}
    assert all(answer.headers["x-ratelimit-reset-requests"].endswith("s") for answer in answers)
    assert 1 <= int(answers[3].headers["retry-after"]) <= 10
    assert answers[3].json()["error"]["type"] == "rate_limit_error"
    assert (await keyed.get("/v1/jobs", headers=ben)).status_code == 200


async def test_a_tenants_quota_holds(keyed: httpx2.AsyncClient, key: Key, jobs: Jobs) -> None:
    """What does not fit is refused whole, with the time to come again; what never fits is a bad request."""
    ann = key("ann", limits={"queued_jobs": 3})
    assert (await keyed.post("/v1/jobs", json=[{"prompt": "x"}] * 2, headers=ann)).status_code == 202
    over = await keyed.post("/v1/jobs", json=[{"prompt": "x"}] * 2, headers=ann)
    assert (over.status_code, over.json()["error"]["code"]) == (429, "quota_exceeded")
    assert int(over.headers["retry-after"]) >= 1
    left = {name: over.headers[f"x-ratelimit-{name}-queued-jobs"] for name in ("limit", "remaining")}
    assert left == {"limit": "3", "remaining": "1"}
    never = await keyed.post("/v1/jobs", json=[{"prompt": "x"}] * 4, headers=ann)
    assert (never.status_code, never.json()["error"]["param"]) == (400, "queued_jobs")
    assert len(jobs.client.keys("{farm}:job:*")) == 2


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "192.0.2.1:8000", ""])
async def test_a_farm_without_keys_answers_no_web_page(web: httpx2.AsyncClient, host: str) -> None:
    """A page whose name was made to lead here, or that sends requests here, reaches nothing."""
    answer = await web.get("/v1/jobs", headers={"Host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_refused")
    for own in ("127.0.0.1:8000", "localhost", "[::1]:8000"):
        assert (await web.get("/v1/jobs", headers={"Host": own})).status_code == 200
        elsewhere = {"Host": own, "Origin": "https://evil.example"}
        assert (await web.get("/v1/jobs", headers=elsewhere)).status_code == 403
        assert (await web.get("/v1/jobs", headers={"Host": own, "Origin": f"http://{own}"})).status_code == 200
    form = await web.post("/v1/jobs", content=b'{"prompt":"x"}', headers={"Content-Type": "text/plain"})
    assert form.status_code == 415


async def test_a_key_counts_where_none_is_needed(web: httpx2.AsyncClient, key: Key) -> None:
    """On an open farm a key still says whose a request is, and a wrong one is still wrong."""
    job = (await web.post("/v1/jobs", json={"prompt": "A goat"}, headers=key("ann"))).json()["id"]
    assert (await web.get(f"/v1/jobs/{job}")).status_code == 404
    assert (await web.get("/v1/jobs", headers=bearer("bf_" + "x" * 43))).status_code == 401


def test_only_a_local_farm_on_loopback_is_open(settings: Settings) -> None:
    """A named server or an address that others reach means keys, and no setting makes it otherwise by mistake."""
    local = load_settings({})
    assert with_keys(local).api.keys == "local"
    assert with_keys(settings).api.keys == "required"
    outside = with_values(local, api={"host": "0.0.0.0"})  # noqa: S104
    assert with_keys(outside).api.keys == "required"
    check_exposure(with_keys(outside).api)
    with pytest.raises(SettingsError, match="farm keys create"):
        check_exposure(with_values(outside, api={"keys": "local"}).api)
    assert not is_loopback("0.0.0.0")  # noqa: S104
