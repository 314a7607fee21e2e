"""API keys: what the server keeps of them, and whom they let in."""

from __future__ import annotations

import hmac
import re

import pytest
import redis

from farm import keys
from farm.errors import InvalidRequest
from farm.ledger.jobs import Jobs
from farm.ledger.keyring import Keyring, NewKey, Principal, hash_of
from farm.ledger.tenants import Tenants


@pytest.fixture
def ring(jobs: Jobs) -> Keyring:
    return Keyring(jobs)


def test_a_key_opens_until_it_is_revoked(ring: Keyring) -> None:
    """Whoever sends the secret is the key's tenant with its scopes; a revoked key is nobody, at once."""
    key = ring.create("ann", scopes=("read", "submit"), name="laptop")
    assert ring.find(key.secret) == Principal(key.id, "ann", frozenset({"submit", "read"}))
    assert ring.revoke(key.id)
    assert ring.find(key.secret) is None
    assert not ring.revoke(key.id)
    assert ring.list() == []


def test_a_secret_has_256_bits_and_is_nowhere_but_in_the_answer(ring: Keyring, client: redis.Redis) -> None:
    """32 random bytes, shown once: neither the server nor a list nor a repr holds them."""
    made = [ring.create("ann", name="n") for _ in range(3)]
    for key in made:
        assert re.fullmatch(r"bf_[A-Za-z0-9_-]{43}", key.secret)
        assert key.secret not in repr(key)
        ring.find(key.secret)
    kept = repr([client.hgetall(name) for name in client.scan_iter()]) + repr(ring.list())
    for key in made:
        assert key.secret not in kept
        assert key.secret[3:] not in kept
        assert hash_of(key.secret) in kept
    assert len({key.secret for key in made}) == 3


@pytest.mark.parametrize("change", ["last", "first", "longer", "shorter", "newline", "prefix", "empty"])
def test_anything_but_the_secret_is_refused(ring: Keyring, change: str) -> None:
    """One wrong character is as good as none, and a malformed secret is not even looked up."""
    secret = ring.create("ann").secret
    other = {"A": "B"}.get(secret[-1], "A")
    wrong = {
        "last": secret[:-1] + other,
        "first": secret[:3] + ("B" if secret[3] == "A" else "A") + secret[4:],
        "longer": secret + "A",
        "shorter": secret[:-1],
        "newline": secret + "\n",
        "prefix": secret[3:],
        "empty": "",
    }[change]
    assert ring.find(wrong) is None
    assert ring.find(secret) is not None


def test_the_whole_hash_is_compared_in_constant_time(
    ring: Keyring, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That a key is found under its id opens nothing: all 256 bits of the hash must agree, by compare_digest."""
    asked: list[tuple[str, str]] = []

    def compare(one: str, other: str) -> bool:
        asked.append((one, other))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr("farm.ledger.keyring.compare_digest", compare)
    ann, ben = ring.create("ann"), ring.create("ben")
    assert ring.find(ann.secret) is not None
    assert asked == [(hash_of(ann.secret), hash_of(ann.secret))]
    client.hset(keys.API_KEYS, ann.id, str(client.hget(keys.API_KEYS, ben.id)))
    assert ring.find(ann.secret) is None


def test_the_list_says_all_but_the_secret(ring: Keyring, client: redis.Redis) -> None:
    """Tenant, scopes, name, when it was made and last used, the newest key last."""
    first, second = ring.create("ann", name="laptop"), ring.create("ben", scopes=["admin"])
    before = ring.list()
    assert [(key.id, key.tenant, key.scopes, key.name) for key in before] == [
        (key.id, key.tenant, key.scopes, key.name) for key in sorted((first, second), key=_age)
    ]
    assert {key.last_used_at for key in before} == {None}
    ring.find(first.secret)
    now = client.time()[0]
    [used] = [key for key in ring.list() if key.id == first.id]
    assert used.last_used_at is not None
    assert now - 5 <= used.last_used_at <= now


def _age(key: NewKey) -> tuple[float, str]:
    return key.created_at, key.id


def test_use_is_noted_once_a_minute(ring: Keyring, client: redis.Redis) -> None:
    """A key that is used a thousand times a second is written once a minute."""
    key = ring.create("ann")
    now = client.time()[0]
    for used, noted in ((now - 30, False), (now - 61, True)):
        client.hset(keys.API_KEYS_USED, key.id, used)
        ring.find(key.secret)
        assert (int(client.hget(keys.API_KEYS_USED, key.id) or 0) > used) == noted


def test_a_key_may_bring_its_tenants_weight_and_limits(ring: Keyring, jobs: Jobs) -> None:
    """Weight and limits given with a key are its tenant's, whatever other keys that has."""
    ring.create("ann", weight=3, limits={"queued_jobs": 10})
    ring.create("ann")
    ring.create("ben")
    ann, ben = Tenants(jobs).list()
    assert (ann.name, ann.weight, ann.limits.queued_jobs, ann.own) == ("ann", 3, 10, ("queued_jobs",))
    assert (ben.name, ben.weight, ben.own) == ("ben", 1, ())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"tenant": "a b"}, "is no name"),
        ({"scopes": ["submitt"]}, "did you mean 'submit'"),
        ({"scopes": []}, "opens nothing"),
        ({"weight": 0}, "out of range"),
        ({"limits": {"queued_job": 1}}, "did you mean 'queued_jobs'"),
        ({"limits": {"queued_jobs": 0}}, "out of range"),
        ({"limits": {"queued_jobs": 1.5}}, "whole number"),
        ({"name": "x" * 129}, "at most 128"),
    ],
)
def test_a_wrong_key_is_refused_before_anything_is_written(
    ring: Keyring, client: redis.Redis, wrong: dict[str, object], says: str
) -> None:
    """The error names field, value and remedy, and leaves no key and no half-changed tenant behind."""
    values: dict[str, object] = {"tenant": "ann", "weight": 2, **wrong}
    with pytest.raises(InvalidRequest, match=says):
        ring.create(**values)  # type: ignore[arg-type]
    assert list(client.scan_iter()) == []
