"""Many prompts: in order or as they come, in bounded memory, with errors in their places."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import redis

from farm import (
    Farm,
    FarmError,
    InvalidRequest,
)
from farm.prompts import Prompt
from tests.farmhand import Farmhand, text_of


def test_map_keeps_the_order_and_the_window(farm: Farm, hand: Farmhand) -> None:
    """map answers an endless generator in order, and draws no further ahead than its window."""
    drawn = 0

    def endless() -> Iterator[str]:
        nonlocal drawn
        for drawn in itertools.count(1):
            yield f"p{drawn}"

    results = farm.map(endless(), max_tokens=2, window=20)
    for number in range(1, 101):
        assert next(results).text == text_of(f"p{number}", 2)
        assert drawn <= number + 20
    results.close()  # type: ignore[attr-defined]
    assert hand.most_seen <= 20


def test_a_map_that_is_left_cancels_what_it_had_in_flight(farm: Farm, client: redis.Redis) -> None:
    """Jobs that nobody will read are not generated."""
    with Farmhand(farm.settings, capacity=1, tokens_per_beat=1):
        for _ in farm.map((f"p{n}" for n in itertools.count()), max_tokens=3, window=10):
            break
    states = [client.hget(key, "state") for key in client.scan_iter("{farm}:job:*")]
    assert set(states) <= {"succeeded", "cancelled"}
    assert states.count("cancelled") >= 5


def test_map_delivers_errors_in_their_places_or_raises_them(farm: Farm) -> None:
    """A prompt that breaks a rule and a job that fails take their turns."""
    prompts: list[Prompt] = ["a", "", "bad", "b", {"prompt": "c", "max_tokens": 1}]
    with Farmhand(farm.settings, fail_prompts=frozenset({"bad"})):
        results = list(farm.map(prompts, max_tokens=2, return_exceptions=True))
        kinds = [type(result).__name__ for result in results]
        assert kinds == ["Completion", "InvalidRequest", "JobFailed", "Completion", "Completion"]
        assert not isinstance(results[4], FarmError)
        assert results[4].usage.completion_tokens == 1
        raising = farm.map(prompts, max_tokens=2)
        assert next(raising).text == text_of("a", 2)
        with pytest.raises(InvalidRequest, match="prompt: is empty"):
            next(raising)
    assert list(farm.map([])) == []
    with pytest.raises(InvalidRequest, match="window"):
        farm.map(["a"], window=0)
    with pytest.raises(InvalidRequest, match="max_token: is not a field"):
        list(farm.map(["a"], max_token=3))  # type: ignore[call-overload]


def test_as_completed_delivers_the_first_to_end_first(farm: Farm) -> None:
    """Results come as they are there; jobs given to it are left alone when the caller stops."""
    slow = farm.submit("slow", max_tokens=400)
    with Farmhand(farm.settings, tokens_per_beat=4):
        results = farm.as_completed([slow, "quick", {"prompt": "half", "metadata": {"name": "half"}}], max_tokens=60)
        names = [next(results), next(results), next(results)]
        assert names[-1].id == slow.id
        assert {result.metadata.get("name") for result in names[:2]} == {None, "half"}
        held = farm.submit("held", max_tokens=200)
        left = farm.as_completed([held, slow])
        assert next(left).id == slow.id
        left.close()  # type: ignore[attr-defined]
        assert held.result(timeout=20).usage.completion_tokens == 200
