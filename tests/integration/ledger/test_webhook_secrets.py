"""What webhooks are signed with: a secret for each tenant, and for a day its old ones beside it."""

from __future__ import annotations

import json

from farm import keys
from farm.ledger.webhooks import WebhookSecrets, new_secret
from tests.integration.ledger.farmhand import Field


def test_a_tenants_secret_is_made_once_and_may_be_changed(field: Field) -> None:
    """Each tenant has its own; after a change the old one signs beside the new one for a day."""
    secrets = WebhookSecrets(field.jobs)
    [first] = secrets.of("ann")
    assert first.startswith("whsec_")
    assert WebhookSecrets(field.jobs).of("ann") == [first]
    [bens] = secrets.of("ben")
    assert bens != first
    second = secrets.rotate("ann")
    assert secrets.of("ann") == [second, first]
    body = json.loads(str(field.client.hget(keys.WEBHOOK_SECRETS, "ann")))
    assert 86_390 <= body["old_until"] - field.client.time()[0] <= 86_400
    field.client.hset(keys.WEBHOOK_SECRETS, "ann", json.dumps({**body, "old_until": field.client.time()[0] - 1}))
    assert secrets.of("ann") == [second]
    third = secrets.rotate("ann")
    assert secrets.of("ann") == [third, second]
    assert secrets.of("ben") == [bens]


def test_a_change_of_secret_may_be_repeated(field: Field) -> None:
    """After a lost answer the same change, or one made anew, leaves every secret of that day to sign, up to five."""
    secrets = WebhookSecrets(field.jobs)
    [first] = secrets.of("ann")
    new = new_secret()
    for _ in range(2):
        assert secrets.rotate("ann", new) == new
        assert secrets.of("ann") == [new, first]
    more = [secrets.rotate("ann") for _ in range(3)]
    assert secrets.of("ann") == [*reversed(more), new, first]
    latest = secrets.rotate("ann")
    assert secrets.of("ann") == [latest, *reversed(more), new]
    assert secrets.rotate("ann", more[0]) == more[0]
    assert secrets.of("ann")[0] == latest, "a late repetition takes nothing back"
    assert secrets.rotate("eve", new) == new
    assert secrets.of("eve") == [new]
