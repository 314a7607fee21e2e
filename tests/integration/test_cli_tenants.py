"""``farm keys``, ``tenants`` and ``usage`` as processes, against a real server."""

from __future__ import annotations

import pytest

from farm.ledger.jobs import Jobs
from farm.ledger.keyring import Keyring
from farm.ledger.webhooks import WebhookSecrets
from tests.commands import Said, farm
from tests.integration.conftest import submit


def _farm(jobs: Jobs, *args: object) -> Said:
    assert jobs.settings.redis.url is not None
    return farm(*args, REDIS__URL=jobs.settings.redis.url.get_secret_value())


def test_a_key_from_its_making_to_its_end(jobs: Jobs) -> None:
    """create prints the secret alone on stdout, once; list and JSON never show it; revoke ends it, once."""
    said = _farm(jobs, "keys", "create", "--tenant", "ann", "--scope", "read", "--name", "lap", "--limit", "burst=9")
    secret = said.out.strip()
    principal = Keyring(jobs).find(secret)
    assert said.code == 0
    assert principal is not None
    assert (principal.tenant, principal.scopes) == ("ann", {"read"})
    assert "not shown again" in said.err
    assert principal.key_id in said.err
    assert secret not in said.err
    shown, listed = _farm(jobs, "keys", "list"), _farm(jobs, "keys", "list", "--json")
    assert principal.key_id in shown.out
    assert "lap" in shown.out
    assert secret[3:] not in shown.out + listed.out
    [key] = listed.json["keys"]
    assert (key["id"], key["tenant"], key["scopes"], key["name"]) == (principal.key_id, "ann", ["read"], "lap")
    gone = _farm(jobs, "keys", "revoke", principal.key_id)
    assert (gone.code, gone.out) == (0, f"{principal.key_id} revoked\n")
    assert Keyring(jobs).find(secret) is None
    again = _farm(jobs, "keys", "revoke", principal.key_id, "--json")
    assert (again.code, again.json) == (1, {"id": principal.key_id, "revoked": False})


def test_a_webhook_secret_is_shown_and_changed(jobs: Jobs) -> None:
    """The same each time, for its tenant alone, until it is rotated."""
    first = _farm(jobs, "keys", "webhook-secret", "--tenant", "ann")
    again = _farm(jobs, "keys", "webhook-secret", "--tenant", "ann", "--json")
    assert first.code == 0
    assert first.out.startswith("whsec_")
    assert again.json == {"tenant": "ann", "secret": first.out.strip()}
    second = _farm(jobs, "keys", "webhook-secret", "--tenant", "ann", "--rotate").out.strip()
    assert second != first.out.strip()
    assert WebhookSecrets(jobs).of("ann") == [second, first.out.strip()]


def test_a_tenant_s_weight_and_limits(jobs: Jobs) -> None:
    """tenants shows and changes weight and limits; what is not named stays as it was."""
    submit(jobs, 3, max_tokens=10)
    changed = _farm(
        jobs, "tenants", "ann", "--weight", 3, "--limit", "queued_jobs=7", "--limit", "burst=none", "--json"
    )
    assert changed.code == 0
    assert (changed.json["weight"], changed.json["limits"]["queued_jobs"]) == (3, 7)
    back = _farm(jobs, "tenants", "ann", "--limit", "queued_jobs=default", "--json").json
    assert (back["weight"], back["limits"]["queued_jobs"], back["own"]) == (3, None, ["burst"])
    everyone = _farm(jobs, "tenants", "--json").json["tenants"]
    assert [(tenant["name"], tenant["queued_jobs"]) for tenant in everyone] == [("ann", 0), ("default", 3)]


def test_usage_by_day(jobs: Jobs) -> None:
    """usage shows what ended, per tenant and day, for people and for programs."""
    jobs.cancel(submit(jobs, 3))
    shown = _farm(jobs, "usage", "--days", 1)
    [account] = _farm(jobs, "usage", "--tenant", "default", "--json").json["usage"]
    assert (account["cancelled"], account["jobs"], account["total_tokens"]) == (3, 3, 0)
    assert shown.out.splitlines()[1].split() == [account["day"], "default", "3", "0", "3", "0", "0", "0"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["keys", "create", "--tenant", "a", "--scope", "wirte"], "known: submit, read, admin"),
        (["tenants", "--weight", "2"], "say whose"),
        (["tenants", "a", "--limit", "queued_jobs=many"], "as queued_jobs=1000"),
    ],
)
def test_wrong_values_are_wrong_usage(jobs: Jobs, args: list[str], says: str) -> None:
    """What can be asked otherwise is 2, in one line that says how."""
    said = _farm(jobs, *args)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert says in said.err
