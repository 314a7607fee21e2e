"""``/v1/usage``: what a tenant used, day by day."""

from __future__ import annotations

from collections.abc import Callable

import httpx2
import pytest

from tests.farmhand import Farmhand

Key = Callable[..., dict[str, str]]


@pytest.fixture
async def used(keyed: httpx2.AsyncClient, key: Key, hand: Farmhand) -> None:
    """Two jobs of ann's and one of ben's that have ended today."""
    with hand:
        for tenant, count in (("ann", 2), ("ben", 1)):
            for n in range(count):
                body = {"prompt": f"{tenant} {n}", "max_tokens": 3}
                ended = await keyed.post("/v1/jobs", json=body, headers={**key(tenant), "Prefer": "wait=20"})
                assert ended.json()["state"] == "succeeded"


@pytest.mark.usefixtures("used")
async def test_a_key_shows_its_tenants_usage(keyed: httpx2.AsyncClient, key: Key) -> None:
    """A tenant sees its jobs and tokens by day, and no one else's."""
    [day] = (await keyed.get("/v1/usage", headers=key("ann"))).json()["usage"]
    assert (day["tenant"], day["jobs"], day["succeeded"], day["completion_tokens"]) == ("ann", 2, 2, 6)
    assert day["total_tokens"] == day["prompt_tokens"] + day["completion_tokens"]
    assert (await keyed.get("/v1/usage", params={"days": 400}, headers=key("cleo"))).json() == {"usage": []}


@pytest.mark.usefixtures("used")
async def test_only_the_scope_admin_shows_other_tenants_usage(keyed: httpx2.AsyncClient, key: Key) -> None:
    """Naming another tenant, or all of them, is refused unless the key's scope is admin."""
    for tenant in ("ben", "*", "nobody"):
        refused = await keyed.get("/v1/usage", params={"tenant": tenant}, headers=key("ann"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_scope")
    admin = key("ops", scopes=["read", "admin"])
    [day] = (await keyed.get("/v1/usage", params={"tenant": "ben"}, headers=admin)).json()["usage"]
    assert (day["tenant"], day["jobs"]) == ("ben", 1)
    everyone = (await keyed.get("/v1/usage", params={"tenant": "*"}, headers=admin)).json()["usage"]
    assert [day["tenant"] for day in everyone] == ["ann", "ben"]


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"days": "0"}, "days"),
        ({"days": "401"}, "days"),
        ({"days": "many"}, "days"),
        ({"days": "32", "tenant": "*"}, "days"),
        ({"tenant": "no name"}, "tenant"),
        ({"since": "2026"}, "since"),
    ],
)
async def test_what_it_cant_show_is_refused(web: httpx2.AsyncClient, params: dict[str, str], field: str) -> None:
    """A range too long, a name that is none, a parameter that is unknown: 400, and the field is named."""
    answer = await web.get("/v1/usage", params=params)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
