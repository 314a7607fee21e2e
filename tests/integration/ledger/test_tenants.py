"""Tenants: weights and limits, theirs or the settings'."""

from __future__ import annotations

import math

import pytest

from farm.errors import InvalidRequest
from farm.ledger.jobs import Jobs
from farm.ledger.tenants import Limits, Tenants
from farm.settings import Settings, load_settings


def limited(settings: Settings, **limits: object) -> Tenants:
    """Tenants of a farm whose settings have these limits."""
    return Tenants(Jobs(load_settings(redis={"url": settings.redis.url}, limits=limits)))


def test_a_tenant_is_there_without_being_made(jobs: Jobs) -> None:
    """Whoever asks has weight 1 and the limits of the settings; a farm without settings limits nobody."""
    ann = Tenants(jobs).get("ann")
    assert (ann.weight, ann.limits, ann.own) == (1, Limits(), ())
    assert Tenants(jobs).list() == []


def test_own_limits_go_before_the_settings(jobs: Jobs, settings: Settings) -> None:
    """A limit of its own, or none at all, takes the place of the settings' for one tenant; the others keep theirs."""
    tenants = limited(settings, requests_per_s=2.5, queued_jobs=100)
    assert tenants.get("ann").limits == Limits(requests_per_s=2.5, burst=5, queued_jobs=100)
    tenants.change("ann", limits={"queued_jobs": 7, "requests_per_s": math.inf, "queued_tokens": 900})
    assert tenants.get("ann").limits == Limits(queued_jobs=7, queued_tokens=900)
    assert tenants.get("ann").own == ("requests_per_s", "queued_jobs", "queued_tokens")
    assert tenants.get("ben").limits == Limits(requests_per_s=2.5, burst=5, queued_jobs=100)
    tenants.jobs.client.close()


def test_what_is_not_named_stays(jobs: Jobs) -> None:
    """A change touches what it names; a limit set back to the default is the settings' again."""
    tenants = Tenants(jobs)
    tenants.change("ann", weight=2, limits={"queued_jobs": 7})
    tenants.change("ann", limits={"burst": 3, "requests_per_s": 1})
    assert tenants.change("ann", weight=4).limits == Limits(requests_per_s=1, burst=3, queued_jobs=7)
    ann = tenants.change("ann", limits={"queued_jobs": None, "burst": None, "requests_per_s": None})
    assert (ann.weight, ann.limits, ann.own) == (4, Limits(), ())
    assert [tenant.name for tenant in tenants.list()] == ["ann"]


@pytest.mark.parametrize("limits", [{"queued_jobs": -1}, {"requests_per_s": 0}, {"requests_per_s": math.nan}, {"x": 1}])
def test_a_wrong_limit_changes_nothing(jobs: Jobs, limits: dict[str, float]) -> None:
    """A change with one bad value is refused whole."""
    with pytest.raises(InvalidRequest):
        Tenants(jobs).change("ann", weight=3, limits={"queued_tokens": 5, **limits})
    assert Tenants(jobs).get("ann").weight == 1
    assert Tenants(jobs).list() == []
